"""Conversion of older generations' tensors to one layout, and removal of tensors that have no effect."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from doge_export.checkpoint.architecture import Architecture
from doge_export.errors import DogeExportError

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint.tensors import Tensors


def relaid(tensors: Tensors) -> Tensors:
    """Permute the axes of keys to one layout.

    1. Keys of the inner values [V, R] (one head) -> [1, R, V].
    2. Product keys [heads, K, 2, R / 2] (M0, M1) -> [2, heads, R / 2, K]; [2, R / 2, K] (M4, M5) -> [2, 1, R / 2, K].

    A tensor with another number of axes stays as it is; the later check of shapes refuses it by name.
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
    """Sum the columns of G3's dt_proj, which reads each value head once for every query head of its group.

    The result reads every value head once, [Hs, Hkv * D], and gives the same scores.
    """
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
    """Remove tensors that never change an answer.

    1. dynamic_mask (G1, G2) masks keys where it is zero, and no training changes it: without a zero it does nothing.
    2. "threshold" scores (G3) mask keys with exp(A * softplus(.)) < 1: with no negative A there are none.
    3. Attention that is plainly `causal` (is_causal of G4) does not use its scores.

    Returns:
        The remaining tensors, their architecture, and the reasons, one sentence each.

    Raises:
        DogeExportError: a dynamic_mask has zeros.
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
