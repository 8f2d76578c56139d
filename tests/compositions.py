"""Every composition that a generation of Doge is made of, alone on a tiny decoder with random weights."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import onnx_ir as ir
import torch

from doge_export.checkpoint.architecture import Architecture, InnerValues, Moe, RatioMask, Rope
from doge_export.graph import trace
from doge_export.model import DogeForExport

BASE = Architecture(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    keep_window_size=0,
    rms_norm_eps=1e-6,
    rope=Rope(),
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    score_heads=2,
)
MHA: dict[str, Any] = {"num_key_value_heads": 4}
PRODUCT_KEYS: dict[str, Any] = {"num_experts": 36, "num_experts_per_tok": 3, "retrieval_size": 16}
COMPOSITIONS: dict[str, dict[str, Any]] = {
    "as today": {"keep_window_size": 9},
    "no scores": {"score": "none", "score_heads": 1},
    "score by query head": {"score_heads": 4, "qk_norm": False},
    "score by query head, selected": {"score_heads": 4, "keep_window_size": 9},
    "linear score": {"score": "linear"},
    "angles scaled by YaRN": {"rope": Rope("yarn", factor=4.0, original_max_position_embeddings=32)},
    "keys stand still": {"rotates_keys": False, "qk_norm": False, "score": "none", "score_heads": 1},
    "values from a table": MHA | {"inner_values": InnerValues(8, 2, 3, 16), "score": "none", "score_heads": 1},
    "no gate": {"gated_mlp": False},
    "plain residuals": {"weighted_residuals": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "heads of 12": {"head_dim": 12},
    "heads of 20, one of keys": {"head_dim": 20, "num_key_value_heads": 1, "score_heads": 1},
    "M0": {"moe": Moe(variant="M0", num_heads=2, **PRODUCT_KEYS), "gated_mlp": False},
    "M1": {"moe": Moe(variant="M1", num_heads=2, **PRODUCT_KEYS)},
    "M7-fixed": {"moe": Moe(36, 3, variant="M7-fixed")},
}
"""Those in which a token's logits depend on the tokens before it alone."""

FULLY_MASKING: dict[str, dict[str, Any]] = {
    "hard threshold": {"score": "threshold", "score_heads": 4, "qk_norm": False},
    "ratio of all": {"score_heads": 4, "ratio_mask": RatioMask(0.3, 0, False, True)},
    "ratio of all, replaced": {"score_heads": 4, "ratio_mask": RatioMask(0.7, 0, False, False)},
    "ratio beyond a window": {"score_heads": 2, "ratio_mask": RatioMask(0.5, 9, False, True)},
    "ratio of the excess": {"score_heads": 4, "ratio_mask": RatioMask(1.0, 9, True, True)},
}
"""Those in which a token may see no key."""

MIXING: dict[str, dict[str, Any]] = {
    "M4": {"moe": Moe(variant="M4", **PRODUCT_KEYS)},
    "M5": {"moe": Moe(variant="M5", **PRODUCT_KEYS)},
    "M6": {"moe": Moe(36, 3, variant="M6", router_bias=True)},
    "M7": {"moe": Moe(36, 3)},
}
"""Those whose reference routes a token by others."""

EVERY = COMPOSITIONS | FULLY_MASKING | MIXING


def random_module(changes: dict[str, Any], seed: int = 0, **options: Any) -> DogeForExport:
    """`BASE` with `changes`; options are those of `DogeForExport`. Every mechanism of it matters to the logits."""
    torch.manual_seed(seed)
    module = DogeForExport(dataclasses.replace(BASE, **changes), **options).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".A"):
                parameter.uniform_(0.3, 0.8)
                if module.architecture.score == "threshold":
                    parameter[::2] *= -1  # of every key or of none, by head
            elif "residual" in name or "norm" in name:
                parameter.uniform_(0.7, 1.3)
            elif "embed_tokens" in name:
                parameter.normal_()
            elif name.endswith("keys"):
                parameter.normal_(std=parameter.shape[-2] ** -0.5)
            else:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    return module


def traced(name: str, **options: Any) -> tuple[DogeForExport, ir.Model]:
    """The random module of a composition, which is shared, and its graph, a copy to lower."""
    module, model = traced_once(name, **options)
    return module, copy_of(model)


@functools.cache
def traced_once(name: str, **options: Any) -> tuple[DogeForExport, ir.Model]:
    """Both shared: the graph holds the parameters of the module."""
    module = random_module(EVERY[name], **options)
    return module, trace(module)


def copy_of(model: ir.Model) -> ir.Model:
    """The same graph of its own; `Model.clone` would share the types of values, which lowering changes."""
    return ir.serde.deserialize_model(ir.serde.serialize_model(model))
