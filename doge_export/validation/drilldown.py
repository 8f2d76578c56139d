"""Where a failing run first leaves the reference: the caches of both, compared layer by layer.

Keys and values of layer i are the projections of its input, so the first layer whose cache differs localises a fault
to what lies between its own projections and those of the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CACHE_TOLERANCE = 2e-4
"""Largest difference in a cache that counts as equal, in standard deviations of the reference's cache of that layer."""


def first_diverging_layer(
    reference: Sequence[tuple[np.ndarray, np.ndarray]],
    subject: Sequence[tuple[np.ndarray, np.ndarray]],
    compared: np.ndarray,
) -> str:
    """One sentence about the first layer whose (keys, values), float32 [B, Hkv, S, D] each, differ.

    compared [B, S] bool: the positions that count.
    """
    largest, where = 0.0, 0
    if len(reference) != len(subject):
        return f"the subject caches {len(subject)} layers, the reference {len(reference)}"
    for layer, (theirs, ours) in enumerate(zip(reference, subject, strict=True)):
        found = []
        for what, expected, actual in zip(("keys", "values"), theirs, ours, strict=True):
            actual = actual[..., : expected.shape[-1]]  # a target may store heads wider, with zeros behind
            if expected.shape != actual.shape:
                return f"the cached {what} of layer {layer} have shape {actual.shape}, expected {expected.shape}"
            difference = _largest(expected, actual, compared)
            if difference > largest:
                largest, where = difference, layer
            if not difference <= CACHE_TOLERANCE:
                found.append(f"{what} by {difference:.1e} of std" if np.isfinite(difference) else f"{what} not finite")
        if found:
            return f"first diverging layer: {layer} ({' and '.join(found)}): {_suspects(layer, found)}"
    return (
        f"cached keys and values agree in every layer (largest difference {largest:.1e} of std, layer {where}): "
        f"look at what follows them in the last layer, {len(reference) - 1}, and at the head"
    )


def _largest(expected: np.ndarray, actual: np.ndarray, compared: np.ndarray) -> float:
    """Largest difference at compared positions over the reference's standard deviation; NaN where not finite."""
    ours, theirs = (np.moveaxis(array, 2, 1)[compared].astype(np.float64) for array in (actual, expected))
    if ours.size == 0:
        return 0.0
    return float(np.abs(ours - theirs).max() / max(theirs.std(), np.finfo(np.float32).tiny))


def _suspects(layer: int, found: Sequence[str]) -> str:
    if len(found) == 1 and found[0].startswith("keys"):
        return f"values agree, so the input does too: look at k_proj, k_norm and RoPE of layer {layer}"
    source = "the embedding" if layer == 0 else f"attention, MLP and residuals of layer {layer - 1}"
    return f"look at {source} and at the key and value projections of layer {layer}"
