"""What the native decoder stack runs: a model's architecture in the words of the C interface, or why it cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from doge_export.checkpoint.architecture import Architecture, InnerValues, Moe, RatioMask, Rope
from doge_export.checkpoint.rope_factor import attention_factor
from doge_export.package.manifest import GraphEntry, Manifest
from doge_export.runtime.native.interface import Config, Kind, MoeKind, RopeKind, Score

Backend = Literal["native", "graph"]
"""What computes: the native decoder stack, or onnxruntime over the folder's graph."""

PRECISIONS = ("fp32", "int8", "int4")
"""Precisions whose weights have a native form."""

_SCORES = {"exp": Score.EXP, "linear": Score.LINEAR, "none": Score.NONE}


class NotNative(Exception):
    """The native decoder cannot run a graph; the text says why, and reads on after "because"."""


def check_graph(manifest: Manifest, graph: GraphEntry) -> Architecture:
    """Return the architecture of a graph that has a native form.

    Raises:
        NotNative: it has none.
    """
    if manifest.target != "onnxruntime" or graph.interface not in ("in-place", "one-call", "bounded"):
        raise NotNative(f"only graphs of target onnxruntime have a native form, and this one is for {manifest.target}")
    if graph.precision not in PRECISIONS:
        raise NotNative(f"{graph.precision} is not among its precisions ({', '.join(PRECISIONS)})")
    return check_manifest(manifest)


def check_manifest(manifest: Manifest) -> Architecture:
    """Return the architecture of a folder, as far as its length needs it.

    Raises:
        NotNative: the native decoder does not compute it.
    """
    try:
        architecture = read_architecture(manifest.architecture).within(manifest.max_length)
        check_architecture(architecture)
        return architecture
    except (TypeError, AttributeError) as error:  # `read_manifest` checks only what sessions read
        raise NotNative("the manifest has values that no architecture has; export the model again") from error


def check_architecture(architecture: Architecture) -> None:
    """Check that the native decoder computes an architecture.

    Raises:
        NotNative: it does not.
    """
    why = _unsupported(architecture)
    if why is not None:
        raise NotNative(f"it does not compute {why}")


def _unsupported(a: Architecture) -> str | None:
    if a.score not in _SCORES:
        return "scores with a threshold"
    if a.ratio_mask is not None:
        return "masks that leave out a share of the keys"
    if a.inner_values is not None:
        return "values looked up in a table"
    if not a.gated_mlp:
        return "feed-forward layers without a gate"
    if not a.rotates_keys:
        return "keys that stand still"
    if a.moe is not None and (a.moe.variant not in ("M7", "M7-fixed") or a.moe.num_heads != 1):
        return f"the router of {a.moe.variant}"
    return None


def read_architecture(values: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a manifest records.

    Raises:
        NotNative: a field is missing or of a newer version.
    """
    parts = {"rope": Rope, "moe": Moe, "ratio_mask": RatioMask, "inner_values": InnerValues}
    try:
        read = dict(values)
        for name, kind in parts.items():
            if read.get(name) is not None:
                known = {field.name for field in dataclasses.fields(kind)}
                read[name] = kind(**{key: value for key, value in read[name].items() if key in known})
        known = {field.name for field in dataclasses.fields(Architecture)}
        return Architecture(**{key: value for key, value in read.items() if key in known})
    except (TypeError, ValueError, AttributeError) as error:
        raise NotNative("the manifest does not describe the whole architecture; export the model again") from error


def config_of(a: Architecture, manifest: Manifest) -> Config:
    """Return the architecture in the words of the C interface.

    Raises:
        NotNative: a value is no number that it takes.
    """
    moe = MoeKind.DENSE
    if a.moe is not None:
        moe = MoeKind.REFERENCE if manifest.cdmoe_routing == "reference" else MoeKind.PER_TOKEN
    try:
        scales = a.scales_rope(manifest.max_length)
        longrope, dynamic = (scales and a.rope.rope_type == each for each in ("longrope", "dynamic"))
        return Config(
            vocab_size=a.vocab_size,
            hidden_size=a.hidden_size,
            intermediate_size=a.intermediate_size,
            num_hidden_layers=a.num_hidden_layers,
            num_attention_heads=a.num_attention_heads,
            num_key_value_heads=a.num_key_value_heads,
            head_dim=a.head_dim,
            score_heads=a.score_heads if a.score != "none" else 1,
            keep_window_size=a.keep_window_size if a.selects_keys(manifest.max_length) else 0,
            max_length=manifest.max_length,
            score=_SCORES[a.score],
            rope=RopeKind.LONGROPE if longrope else RopeKind.DYNAMIC if dynamic else RopeKind.FIXED,
            moe=moe,
            num_experts=a.moe.num_experts if a.moe else 0,
            num_experts_per_tok=a.moe.num_experts_per_tok if a.moe else 0,
            rms_norm_eps=a.rms_norm_eps,
            rope_attention_factor=attention_factor(a.rope, a.max_position_embeddings),
            rope_theta=a.rope.rope_theta,
            rope_factor=a.rope.factor or 1.0,
            rope_trained_length=(a.trained_length or 0) if longrope or dynamic else 0,
            rope_max_positions=a.max_position_embeddings if dynamic else 0,
        )
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise NotNative("the manifest has a size that is no number; export the model again") from error


def can_drop_keys(config: Config) -> bool:
    """Return whether a model with a window can do without the keys that have left it."""
    return config.num_key_value_heads % config.score_heads == 0 and config.moe != MoeKind.REFERENCE


def cache_kind(graph: GraphEntry) -> Kind:
    """Return the type of the caches that a graph's own have: 8 bits, or float32."""
    in_bytes = graph.quantization is not None and graph.quantization.get("cache") == "int8"
    return Kind.INT8 if in_bytes else Kind.FLOAT32
