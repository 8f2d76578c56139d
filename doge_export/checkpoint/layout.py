"""Tensors of older generations brought to one layout, and those left out that never had an effect."""

from __future__ import annotations

import dataclasses

import torch

from doge_export.checkpoint.architecture import Architecture
from doge_export.checkpoint.tensors import Tensors
from doge_export.errors import DogeExportError


def relaid(tensors: Tensors) -> Tensors:
    """Canonical tensors in one layout; shapes that are none of a generation stay, to be refused by name.

    1. Keys of the inner values [V, R] (one head) -> [1, R, V].
    2. Product keys [heads, K, 2, R / 2] (M0, M1) -> [2, heads, R / 2, K]; [2, R / 2, K] (M4, M5) -> [2, 1, R / 2, K].
    """
    for name, shape in tensors.shapes.items():
        if name.endswith(".v_proj.keys") and len(shape) == 2:
            tensors = tensors.changed(name, (1, *shape[::-1]), lambda keys: keys.T[None])
        elif name.endswith(".router_gate.keys") and len(shape) == 4:
            heads, keys, halves, width = shape
            tensors = tensors.changed(name, (halves, heads, width, keys), lambda keys: keys.permute(2, 0, 3, 1))
        elif name.endswith(".router_gate.keys") and len(shape) == 3:
            tensors = tensors.changed(name, (shape[0], 1, *shape[1:]), lambda keys: keys[:, None])
    return tensors


def folded(tensors: Tensors, a: Architecture) -> Tensors:
    """dt_proj over values repeated for every query head (G3) -> over the values: the copies' columns are summed."""
    if a.score != "threshold" or a.num_attention_heads == a.num_key_value_heads:
        return tensors

    def fold(weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(1, (a.num_key_value_heads, -1, a.head_dim)).sum(2).flatten(1)

    for name in tensors:
        if name.endswith(".dt_proj.weight"):
            tensors = tensors.changed(name, (a.score_heads, a.num_key_value_heads * a.head_dim), fold)
    return tensors


def drop_inert(
    tensors: Tensors, architecture: Architecture, *, causal: bool
) -> tuple[Tensors, Architecture, list[str]]:
    """Leave out what never changes an answer; gives the rest, what it is, and the reasons.

    1. dynamic_mask (G1, G2) is compared with zero and never trained: without a zero it does nothing.
    2. "threshold" scores (G3) leave out keys with exp(A * softplus(.)) < 1: with no negative A there are none.
    3. A `causal` mask (is_causal of G4) leaves the scores unused.

    Raises:
        DogeExportError: a dynamic_mask with zeros.
    """
    reasons = []
    inert = [name for name in tensors if name.endswith(".dynamic_mask")]
    for name in inert:
        if bool((tensors[name] == 0).any()):
            raise DogeExportError(
                f"tensor {name} has zeros, which hide keys by their place; no training leaves any there, and this is"
                " not supported"
            )
    if inert:
        reasons.append("dynamic_mask has no zero: it hides nothing and is left out")
    scores = [name for name in tensors if name.endswith(".self_attn.A")]
    if causal:
        reasons.append("is_causal in config.json: a plain causal mask; A and dt_proj are left out")
    elif architecture.score == "threshold" and not any(bool((tensors[name] < 0).any()) for name in scores):
        reasons.append("no A is negative: the hard mask hides nothing; A and dt_proj are left out")
    else:
        return tensors.without(inert), architecture, reasons
    inert += scores + [name for name in tensors if ".self_attn.dt_proj." in name]
    plain = dataclasses.replace(architecture, score="none", score_heads=1, ratio_mask=None)
    return tensors.without(inert), plain, reasons
