"""Strict parsing of config.json into an `Architecture`: a value that cannot be right is refused, never guessed.

Missing keys take the defaults of the generation's own config class, except sizes, which every published config states.
Keys that were renamed over time are read under all their names.
Unknown keys are ignored (`dtype`, `transformers_version`, ...); `auto_map` and the code it names are never used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from doge_export.checkpoint.architecture import Architecture, InnerValues, Moe, MoeVariant, RatioMask, Rope, Task
from doge_export.checkpoint.fields import REQUIRED, Fields, shown
from doge_export.checkpoint.identify import G1A, NOTHING_ASSUMED, Assumptions, Identity, Shape, rotates_keys
from doge_export.checkpoint.rope import parse_rope
from doge_export.errors import DogeExportError

_MAX_LAYERS = 10_000  # a typing error must not build a table of a billion tensor names

_UNSUPPORTED = {
    "sliding_window": "sliding-window attention is not supported; Doge models published so far have null here",
    "quantization_config": "quantised weights are not supported; export the original float checkpoint",
    "per_layer_config": "layers that differ from each other are not supported",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes that the configs of all generations state under the same names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float


def parse_sizes(config: Mapping[str, Any]) -> Sizes:
    """Read the sizes from the content of a config.json, and refuse settings that no generation of Doge has.

    Raises:
        DogeExportError: the config is not of a Doge model, or a size is missing, of the wrong type, out of range or
            contradicts another one.
    """
    if config.get("model_type") not in ("doge", "doge2"):
        seen = shown(config["model_type"]) if "model_type" in config else "missing"
        raise DogeExportError(f'config.json: model_type is {seen}, expected "doge": only Doge models can be exported')
    for key, reason in _UNSUPPORTED.items():
        if config.get(key) is not None:
            raise DogeExportError(f"config.json: {key} is {shown(config[key])}: {reason}")
    for key in ("cross_domain_intermediate_size", "private_expert_intermediate_size"):
        if key in config:
            raise DogeExportError(f"config.json has {key}: {G1A}")
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
    _check_kinds(fields)
    return Sizes(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=fields.integer("num_hidden_layers", maximum=_MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
    )


_FLAGS = ("attention_bias", "mlp_bias", "hidden_bias", "tie_word_embeddings", "is_moe", "is_causal", "norm_topk_prob")
_COUNTS = ("keep_window_size", "window_size", "num_inner_values", "num_inner_value_heads", "num_value_per_head")


def _check_kinds(fields: Fields) -> None:
    """Refuse a key of the wrong type or range, whether or not the checkpoint's generation reads it."""
    for key in _FLAGS:
        fields.boolean(key, False)
    for key in _COUNTS:
        fields.integer(key, 1)
    if fields.number("dynamic_mask_ratio", 0.0, inclusive=True) > 1:
        raise fields.fail("dynamic_mask_ratio", "a share from 0 to 1")
    if type(fields.values.get("pad_token_id", 0)) not in (int, type(None)):
        raise fields.fail("pad_token_id", "an integer or null")
    if fields.boolean("is_moe", False):
        _experts(fields)


def parse_rotation(config: Mapping[str, Any], sizes: Sizes, max_position_embeddings: int = 2048) -> tuple[int, Rope]:
    """Read max_position_embeddings and the rotary embedding.

    Args:
        config: content of config.json.
        sizes: the sizes in it.
        max_position_embeddings: default for a config without that key.

    Raises:
        DogeExportError: a value is of the wrong type or out of range.
    """
    positions = Fields(config, "config.json").integer("max_position_embeddings", max_position_embeddings)
    return positions, parse_rope(config, head_dim=sizes.head_dim, max_position_embeddings=positions)


def parse_config(
    config: Mapping[str, Any],
    identity: Identity,
    layer: Mapping[str, Shape],
    *,
    tied: bool = False,
    assumed: Assumptions = NOTHING_ASSUMED,
) -> Architecture:
    """Parse the content of a config.json whose generation is known.

    Args:
        config: content of config.json.
        identity: what the tensors tell of the generation, experts and task.
        layer: canonical name -> shape of the first layer's tensors, without the prefix `model.layers.0.`.
        tied: default of tie_word_embeddings.
        assumed: what the user stated because the files do not tell.

    Raises:
        DogeExportError: a value is missing, of the wrong type, out of range, or contradicts another one or `assumed`.
    """
    fields = Fields(config, "config.json")
    sizes, generation = parse_sizes(config), identity.generation
    positions, rope = parse_rotation(config, sizes, 16384 if generation == "G1" else 2048)
    ratio_mask = _ratio_mask(fields, generation, assumed)
    if assumed.ratio_mask is not None and not config.get("dynamic_mask_ratio"):
        raise DogeExportError(f"--ratio-mask {assumed.ratio_mask}: config.json has no dynamic_mask_ratio above 0")
    by_query = generation in _SCORES_BY_QUERY_HEAD
    score = _SCORES.get(generation, "exp")
    scored = sizes.num_attention_heads if by_query else sizes.num_key_value_heads
    old_bias = fields.boolean("hidden_bias", False)
    keeps_best = generation in ("G5", "G6b", "G7", "G8")
    window_key = "window_size" if "keep_window_size" not in config and generation == "G8" else "keep_window_size"
    return Architecture(
        **dataclasses.asdict(sizes),
        max_position_embeddings=positions,
        rope=rope,
        keep_window_size=fields.integer(window_key, 2048) if keeps_best else 0,
        attention_bias=fields.boolean("attention_bias", old_bias),
        mlp_bias=fields.boolean("mlp_bias", old_bias),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", tied),
        moe=_moe(fields, identity, layer),
        generation=generation,
        qk_norm=generation in ("G6a", "G6b", "G7", "G8"),
        rotates_keys=rotates_keys(generation, config),
        score=score,
        score_heads=1 if score == "none" else scored,
        ratio_mask=ratio_mask,
        inner_values=_inner_values(fields, layer) if generation == "G1" else None,
        gated_mlp=generation != "G1",
        weighted_residuals=generation != "G1" and (generation != "G2" or "input_residual" in layer),
        task=identity.task,
    )


def parse_padding(config: Mapping[str, Any], vocab_size: int, task: Task) -> int | None:
    """Read pad_token_id, by which a classifier finds the token that it classifies by.

    Other tasks do not use it: for them an id outside the vocabulary (Llama wrote -1 for none) becomes None.

    Raises:
        DogeExportError: the pad_token_id of a classifier lies outside the vocabulary.
    """
    pad = config.get("pad_token_id")
    if pad is None or 0 <= pad < vocab_size:
        return pad
    if task != "text-classification":
        return None
    raise DogeExportError(
        f"config.json: pad_token_id is {shown(pad)}, expected a token below vocab_size ({vocab_size}): a classifier"
        " finds the end of its text by it; set it to that of the tokenizer, or to null where texts were never padded"
    )


def is_plainly_causal(config: Mapping[str, Any], identity: Identity) -> bool:
    """Return whether attention is plainly causal and ignores its scores: `is_causal` of G4a and G4b."""
    return identity.generation in ("G4a", "G4b") and Fields(config, "config.json").boolean("is_causal", False)


def parse_todays_config(config: Mapping[str, Any]) -> Architecture:
    """Parse the content of a config.json of transformers' own Doge (G7), for which no tensors are needed."""
    cdmoe: MoeVariant | None = "M7" if config.get("is_moe") else None
    return parse_config(config, Identity("G7", cdmoe, "text-generation"), {})


_SCORES: dict[str, Any] = {"G1": "none", "G2": "none", "G3a": "threshold", "G3b": "threshold", "G8": "linear"}
_SCORES_BY_QUERY_HEAD = ("G3a", "G3b", "G4a", "G4b", "G5", "G6a")


def _ratio_mask(fields: Fields, generation: str, assumed: Assumptions) -> RatioMask | None:
    if generation not in ("G4a", "G4b", "G6a"):
        return None
    ratio = fields.number("dynamic_mask_ratio", 0.0, inclusive=True)
    if ratio == 0:
        return None
    has_window = generation == "G6a" or "keep_window_size" in fields.values
    scope = assumed.ratio_mask or ("excess" if has_window else "all")
    if generation == "G6a" and scope != "excess":
        raise DogeExportError(f"--ratio-mask {scope}: the second Doge (G6a) never counted but the excess")
    if scope != "all" and not has_window:
        raise DogeExportError(f"--ratio-mask {scope} needs keep_window_size, which config.json does not have")
    if scope != "excess" and ratio == 1:
        return None  # the published code masks only where 0 < ratio < 1
    return RatioMask(
        ratio=ratio,
        keep_window_size=0 if scope == "all" else fields.integer("keep_window_size", 2048),
        of_excess=scope == "excess",
        adds_causality=generation != "G4a",
    )


def _renamed(fields: Fields, *names: str, default: int = REQUIRED) -> int:
    """Read an integer under the first of `names` that the config has."""
    name = next((name for name in names if name in fields.values), names[0])
    return fields.integer(name, default)


def _moe(fields: Fields, identity: Identity, layer: Mapping[str, Shape]) -> Moe | None:
    variant = identity.cdmoe
    if variant is None:
        return None
    has_heads = variant in ("M0", "M1")
    retrieval_size = None
    if variant in ("M0", "M1", "M4", "M5"):
        # The configs of M4 and M5 do not state it.
        keys = layer.get("mlp.router_gate.keys", ())
        from_tensors = 2 * keys[2] if len(keys) == 4 else REQUIRED
        retrieval_size = _renamed(
            fields, "expert_retrieval_size", "private_expert_retrieval_size", default=from_tensors
        )
    num_experts, picked = _experts(fields)
    return Moe(
        num_experts,
        picked,
        variant=variant,
        num_heads=_renamed(fields, "num_cdmoe_heads", "num_cdmmoe_heads") if has_heads else 1,
        retrieval_size=retrieval_size,
        router_bias=variant == "M6" and "mlp.router_gate.bias" in layer,
    )


def _experts(fields: Fields) -> tuple[int, int]:
    """Read the number of experts, and how many of them each routing head picks for a token.

    norm_topk_prob has no effect: the softmax over the picked experts already sums to one.
    """
    names = ("num_experts_per_tok", "num_cdmoe_experts_per_head", "num_cdmmoe_experts_per_head")
    name = next((name for name in names if name in fields.values), names[0])
    experts_name = _EXPERTS[names.index(name)]
    is_second = fields.values.get("model_type") == "doge2"
    experts = _renamed(fields, *_EXPERTS, default=4096 if is_second else 16384)
    picked = fields.integer(name, 64)
    keys = math.isqrt(experts)
    if picked > keys**2:
        raise DogeExportError(
            f"config.json: {name} is {picked}, but {experts_name} {experts} gives only {keys} x {keys} = {keys**2}"
            " experts to choose from"
        )
    return experts, picked


_EXPERTS = ("num_experts", "num_cdmoe_experts", "num_cdmmoe_experts")


def _inner_values(fields: Fields, layer: Mapping[str, Shape]) -> InnerValues:
    width = (layer.get("self_attn.v_proj.queries.weight") or (0,))[0]
    has_heads = "num_inner_value_heads" in fields.values
    heads = fields.integer("num_inner_value_heads", 1)
    picked = fields.integer("num_value_per_head") if has_heads else 1
    num_values = fields.integer("num_inner_values")
    if picked > num_values:
        raise fields.fail("num_value_per_head", f"at most num_inner_values ({num_values})")
    # The configs of the first days do not state the width.
    size = fields.integer("inner_values_retrieval_size", width // heads or REQUIRED)
    return InnerValues(num_values, heads, picked, size)
