"""config.json -> Architecture, strictly: a value that could not be what was trained is refused, never guessed.

Missing keys take the defaults of transformers' DogeConfig, except the sizes, which a real config always states.
Unknown keys are left alone (`dtype`, `transformers_version`, ...); `auto_map` and the code it names are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doge_export.checkpoint.architecture import Architecture, Moe
from doge_export.checkpoint.fields import Fields, shown
from doge_export.checkpoint.rope import parse_rope
from doge_export.errors import DogeExportError

_MAX_LAYERS = 10_000  # a typing error must not become a table of a billion tensor names

_UNSUPPORTED = {
    "sliding_window": "sliding-window attention is not supported; Doge models published so far have null here",
    "quantization_config": "quantised weights are not supported; export the original float checkpoint",
    "per_layer_config": "layers that differ from each other are not supported",
}


def _check_kind(config: Mapping[str, Any]) -> None:
    """Refuse what is not a plain Doge causal language model of today's generation, as far as the config tells."""
    model_type = config.get("model_type")
    if model_type == "doge2":
        raise DogeExportError("config.json: model_type is doge2, an older Doge generation, not supported yet")
    if model_type != "doge":
        seen = shown(model_type) if "model_type" in config else "missing"
        raise DogeExportError(f'config.json: model_type is {seen}, expected "doge": only Doge models can be exported')
    if "num_inner_values" in config:
        raise DogeExportError(
            "config.json has num_inner_values, which only the first Doge generation has; it is not supported yet"
        )
    architectures = config.get("architectures")
    if isinstance(architectures, list) and "DogeForSequenceClassification" in architectures:
        raise DogeExportError(
            "config.json: architectures names DogeForSequenceClassification; only DogeForCausalLM is supported yet"
        )
    if "window_size" in config and "keep_window_size" not in config:
        raise DogeExportError(
            "config.json has window_size instead of keep_window_size: the flash-dmattn variant of Doge, whose attention"
            " computes something else, is not supported yet"
        )
    for key, reason in _UNSUPPORTED.items():
        if config.get(key) is not None:
            raise DogeExportError(f"config.json: {key} is {shown(config[key])}: {reason}")


def _parse_moe(fields: Fields) -> Moe:
    moe = Moe(fields.integer("num_experts", 16384), fields.integer("num_experts_per_tok", 64))
    fields.boolean("norm_topk_prob", False)  # both mean the same: a softmax already sums to one
    if moe.num_experts_per_tok > moe.num_keys**2:
        raise DogeExportError(
            f"config.json: num_experts_per_tok is {moe.num_experts_per_tok}, but num_experts {moe.num_experts} gives"
            f" only {moe.num_keys} x {moe.num_keys} = {moe.num_keys**2} experts to choose from"
        )
    return moe


def parse_config(config: Mapping[str, Any]) -> Architecture:
    """Read the content of a config.json.

    Raises:
        DogeExportError: not a Doge config of today's transformers format, or a value that is missing, of the wrong
            type, out of range or in contradiction to another one.
    """
    _check_kind(config)
    fields = Fields(config, "config.json")

    hidden_size = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    kv_heads = heads
    if config.get("num_key_value_heads") is not None:
        kv_heads = fields.integer("num_key_value_heads")
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if "head_dim" not in config and hidden_size % heads:
        raise fields.fail("hidden_size", f"a multiple of num_attention_heads ({heads}), or an explicit head_dim")
    head_dim = fields.integer("head_dim", hidden_size // heads)
    if head_dim % 2 or head_dim == 0:
        stated = "" if "head_dim" in config else f" (hidden_size {hidden_size} / num_attention_heads {heads})"
        raise DogeExportError(f"config.json: head_dim is {head_dim}{stated}, expected an even number: RoPE turns pairs")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        raise fields.fail("hidden_act", '"silu"')

    max_position_embeddings = fields.integer("max_position_embeddings", 2048)
    return Architecture(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers", maximum=_MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        keep_window_size=fields.integer("keep_window_size", 2048),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=parse_rope(config, head_dim=head_dim, max_position_embeddings=max_position_embeddings),
        attention_bias=fields.boolean("attention_bias", False),
        mlp_bias=fields.boolean("mlp_bias", False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        moe=_parse_moe(fields) if fields.boolean("is_moe", False) else None,
    )
