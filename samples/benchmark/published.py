"""The published Doge models: name -> generation -> `config.json`.

Sizes and keys are those of the published recipes and of the hub. A name whose weights were uploaded again has several
generations; the first one is the default.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model: the content of its config.json, and the form of its mixture of experts (see `spelling`)."""

    config: dict[str, Any]
    cdmoe: str | None = None


COMMON = {"hidden_act": "silu", "hidden_dropout": 0.0, "initializer_range": 0.02, "rms_norm_eps": 1e-06}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FIRST_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_SPECIAL = {"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128001}
DYNAMIC = {"factor": 4.0, "original_max_position_embeddings": 2048, "rope_type": "dynamic"}


def sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int | None = None) -> dict[str, Any]:
    """Return the config keys that every generation has."""
    grouped = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    return {
        **COMMON,
        "model_type": "doge",
        "architectures": ["DogeForCausalLM"],
        "vocab_size": 32768,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        **grouped,
    }


def first(
    hidden: int, layers: int, heads: int, experts: tuple[int, int, int], values: tuple[int, int, int], positions: int
) -> Model:
    """Return a G1 model; `experts` and inner `values` are each a number, their heads, and the picks of a head."""
    config = sizes(hidden, 4 * hidden, layers, heads) | FIRST_SPECIAL | {"max_position_embeddings": positions}
    config |= {
        "hidden_bias": False,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "num_inner_values": values[0],
        "num_inner_value_heads": values[1],
        "num_value_per_head": values[2],
        "inner_values_retrieval_size": 128,
        "private_expert_retrieval_size": 256,
        "num_cdmmoe_experts": experts[0],
        "num_cdmmoe_heads": experts[1],
        "num_cdmmoe_experts_per_head": experts[2],
    }
    return Model(config, "M0")


def third_wide(hidden: int, layers: int, heads: int) -> Model:
    """Return a G3a model: no grouped heads, no RoPE scaling, an untied head."""
    config = sizes(hidden, 4 * hidden, layers, heads) | FIRST_SPECIAL
    return Model(config | {"hidden_bias": False, "tie_word_embeddings": False, "is_moe": False})


CLASSIC = {
    "20M": (256, 512, 8, 2, 1),
    "60M": (512, 1024, 16, 4, 2),
    "160M": (768, 1536, 24, 6, 3),
    "320M": (1024, 2048, 32, 8, 4),
}


def third(name: str) -> Model:
    """Return a G3b model."""
    config = sizes(*CLASSIC[name]) | SPECIAL | {"rope_scaling": DYNAMIC, "hidden_bias": False, "is_moe": False}
    return Model(config | {"tie_word_embeddings": True, "num_channels": 3, "patch_size": 16})


def fourth(name: str) -> Model:
    """Return a G4b model."""
    config = third(name).config | {"dynamic_mask_ratio": 0.0, "keep_window_size": 2048}
    return Model({key: value for key, value in config.items() if key not in ("num_channels", "patch_size")})


def fifth(name: str) -> Model:
    """Return a model of G5 or of today's transformers."""
    config = sizes(*CLASSIC[name]) | SPECIAL | {"rope_scaling": DYNAMIC, "is_moe": False, "tie_word_embeddings": True}
    return Model(
        config | {"attention_bias": False, "mlp_bias": False, "keep_window_size": 2048, "sliding_window": None}
    )


def llama_vocabulary(*trunk: int, **changes: Any) -> Model:
    """Return a G7 model with Llama 3's vocabulary."""
    config = sizes(*trunk) | LLAMA_SPECIAL | {"vocab_size": 128256, "is_moe": False, "tie_word_embeddings": True}
    config |= {"attention_bias": False, "mlp_bias": False, "keep_window_size": 2048, "sliding_window": None}
    return Model(config | changes)


def routed(model: Model, cdmoe: str, experts: int, picked: int) -> Model:
    """Return the same model with a mixture of experts of one routing head."""
    moe = {"is_moe": True, "num_experts": experts, "num_experts_per_tok": picked, "norm_topk_prob": False}
    return Model(model.config | moe, cdmoe)


def second_doge() -> Model:
    """Return Doge2-175M, a G6a model."""
    config = sizes(576, 1536, 30, 9, 3) | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config |= {
        "model_type": "doge2",
        "architectures": ["Doge2ForCausalLM"],
        "rope_theta": 100000.0,
        "attention_bias": False,
        "keep_window_size": 2048,
        "dynamic_mask_ratio": 0.0,
        "tie_word_embeddings": False,
    }
    return routed(Model(config), "M7", 900, 30)


PUBLISHED: dict[str, dict[str, Model]] = {
    "22M": {"G1": first(256, 4, 2, (1024, 1, 2), (2, 1, 1), 16384)},
    "76M": {"G1": first(512, 8, 4, (2048, 2, 4), (4, 2, 2), 4096)},
    "197M": {"G1": first(768, 12, 6, (3072, 3, 6), (6, 3, 3), 16384)},
    "20M": {"G7": fifth("20M"), "G5": fifth("20M"), "G4b": fourth("20M"), "G3b": third("20M")},
    "60M": {"G7": fifth("60M"), "G5": fifth("60M"), "G4b": fourth("60M"), "G3b": third("60M")},
    "160M": {"G7": fifth("160M"), "G5": fifth("160M"), "G4b": fourth("160M")},
    "320M": {"G7": fifth("320M"), "G5": fifth("320M"), "G4b": fourth("320M")},
    "20M-Instruct": {"G4b": fourth("20M"), "G3a": third_wide(256, 4, 2)},
    "60M-Instruct": {"G5": fifth("60M"), "G4b": fourth("60M"), "G3a": third_wide(512, 8, 4)},
    "160M-Instruct": {"G5": fifth("160M"), "G4b": fourth("160M")},
    "320M-Instruct": {"G5": fifth("320M"), "G4b": fourth("320M")},
    "20M-MoE": {"G7": routed(fifth("20M"), "M7", 1024, 16), "G4b": routed(fourth("20M"), "M7", 1024, 16)},
    "120M-MoE": {"G7": routed(fifth("60M"), "M7", 4096, 32), "G4b": routed(fourth("60M"), "M6", 4096, 32)},
    "40M": {
        "G7": llama_vocabulary(
            *(256, 1024, 8, 2, 1), max_position_embeddings=4096, rope_theta=40000.0, keep_window_size=4096
        )
    },
    "100M": {"G7": llama_vocabulary(512, 1536, 16, 4, 2)},
    "260M": {"G7": llama_vocabulary(768, 2304, 24, 6, 3, keep_window_size=1024)},
    "40M-MoE": {"G7": routed(llama_vocabulary(256, 768, 8, 2, 1), "M7", 1024, 8)},
    "180M-MoE": {"G7": routed(llama_vocabulary(512, 1536, 16, 4, 2), "M7", 4096, 16)},
    "Doge2-175M": {"G6a": second_doge()},
}
