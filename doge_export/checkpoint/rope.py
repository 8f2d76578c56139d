"""The rotary part of config.json, under its old and new keys, read as transformers 5.23 reads it.

Precedence (`convert_rope_params_to_dict`, `standardize_rope_params`): a non-empty `rope_scaling` replaces
`rope_parameters`. Inside it `rope_type` goes before the old key `type`, and `rope_theta` and `partial_rotary_factor`
go before those of the config. `original_max_position_embeddings` of the config goes before that inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from doge_export.checkpoint.architecture import Rope
from doge_export.checkpoint.fields import Fields, shown
from doge_export.errors import DogeExportError


def _optional(fields: Fields, key: str, **limits: Any) -> float | None:
    return fields.number(key, **limits) if fields.values.get(key) is not None else None


def _default(fields: Fields, head_dim: int) -> dict[str, Any]:
    return {}


def _linear(fields: Fields, head_dim: int) -> dict[str, Any]:
    return {"factor": fields.number("factor")}


def _dynamic(fields: Fields, head_dim: int) -> dict[str, Any]:
    if head_dim < 4:
        raise DogeExportError(f"{fields.name}: rope_type dynamic needs a head_dim of at least 4, seen {head_dim}")
    return {"factor": fields.number("factor")}


def _yarn(fields: Fields, head_dim: int) -> dict[str, Any]:
    if "factor" not in fields.values:  # null is allowed: the factor is then the ratio of the two lengths
        raise DogeExportError(f"{fields.name} has no factor, which rope_type yarn requires (null: from the lengths)")
    return {
        "factor": _optional(fields, "factor"),
        "original_max_position_embeddings": fields.integer("original_max_position_embeddings"),
        "attention_factor": _optional(fields, "attention_factor"),
        "beta_fast": _optional(fields, "beta_fast", inclusive=True),
        "beta_slow": _optional(fields, "beta_slow", inclusive=True),
        "mscale": _optional(fields, "mscale", inclusive=True),
        "mscale_all_dim": _optional(fields, "mscale_all_dim", inclusive=True),
        "truncate": fields.boolean("truncate", True),
    }


def _longrope(fields: Fields, head_dim: int) -> dict[str, Any]:
    return {
        "factor": _optional(fields, "factor"),
        # The attention factor divides by the logarithm of this length.
        "original_max_position_embeddings": fields.integer("original_max_position_embeddings", minimum=2),
        "attention_factor": _optional(fields, "attention_factor"),
        "short_factor": fields.numbers("short_factor", head_dim // 2),
        "long_factor": fields.numbers("long_factor", head_dim // 2),
    }


def _llama3(fields: Fields, head_dim: int) -> dict[str, Any]:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if high <= low:
        raise fields.fail("high_freq_factor", f"more than low_freq_factor ({low:g})")
    return {
        "factor": fields.number("factor"),
        "original_max_position_embeddings": fields.integer("original_max_position_embeddings"),
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


def _proportional(fields: Fields, head_dim: int) -> dict[str, Any]:
    return {"factor": fields.number("factor", 1.0)}


_READERS: dict[str, Callable[[Fields, int], dict[str, Any]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def _standardized(config: Mapping[str, Any], max_position_embeddings: int) -> Fields:
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(key) or {}
    name = f"config.json: {key}"
    if not isinstance(given, Mapping):
        raise DogeExportError(f"{name} is {shown(given)}, expected an object with a rope_type")
    nested = [inner for inner, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise DogeExportError(f"{name} is nested ({', '.join(nested)}), but all layers of Doge share one rotation")

    values = {"rope_theta": config.get("rope_theta", 10000.0), **given}
    values.setdefault("rope_type", given.get("type", "default"))
    if config.get("partial_rotary_factor") is not None:
        values.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if "original_max_position_embeddings" in config:
        values["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    values.setdefault("original_max_position_embeddings", max_position_embeddings)
    return Fields(values, name)


def parse_rope(config: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int) -> Rope:
    """Read the rotary embedding that a config.json describes.

    Raises:
        DogeExportError: the type is unknown, a key that it requires is missing, or a value is out of range.
    """
    fields = _standardized(config, max_position_embeddings)
    rope_type = fields.values["rope_type"]
    reader = _READERS.get(rope_type) if isinstance(rope_type, str) else None
    if reader is None:
        raise fields.fail("rope_type", f"one of {', '.join(_READERS)}")

    partial = fields.number("partial_rotary_factor", 1.0, inclusive=True)
    if rope_type == "proportional" and partial > 1:
        raise fields.fail("partial_rotary_factor", "a share from 0 to 1")
    if rope_type != "proportional" and partial != 1:
        # transformers' Doge ignores the share for "default" and fails on the others.
        raise fields.fail(
            "partial_rotary_factor", f"1 with rope_type {rope_type}: Doge turns every dimension of a head"
        )
    return Rope(
        rope_type=rope_type,
        rope_theta=fields.number("rope_theta", above=1.0),  # YaRN divides by its logarithm
        partial_rotary_factor=partial,
        **reader(fields, head_dim),
    )
