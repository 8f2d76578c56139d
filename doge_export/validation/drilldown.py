"""Localisation of a fault: the caches of a failing run and of the reference, compared layer by layer.

Keys and values of layer i are projections of its input, so the fault lies between the projections of the last layer
whose cache agrees and those of the first layer whose cache differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CACHE_TOLERANCE = 2e-4
"""Largest difference between equal caches, in standard deviations of the reference's cache of that layer."""


def first_diverging_layer(
    reference: Sequence[tuple[np.ndarray, np.ndarray]],
    subject: Sequence[tuple[np.ndarray, np.ndarray]],
    compared: np.ndarray,
) -> str:
    """Describe the first layer whose cache differs, in one sentence.

    Args:
        reference: (keys, values) for each layer, float32 [B, Hkv, S, D] each.
        subject: the same of the subject, whose heads may be wider, padded with zeros.
        compared: bool [B, S], the positions to compare.
    """
    largest, where = 0.0, 0
    if len(reference) != len(subject):
        return f"the subject caches {len(subject)} layers, the reference {len(reference)}"
    for layer, (theirs, ours) in enumerate(zip(reference, subject, strict=True)):
        found = []
        for what, expected, actual in zip(("keys", "values"), theirs, ours, strict=True):
            actual = actual[..., : expected.shape[-1]]  # a target may pad heads with zeros
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
    """Compute the largest difference at compared positions, in standard deviations of the reference.

    It is not finite if a value is not.
    """
    ours, theirs = (np.moveaxis(array, 2, 1)[compared].astype(np.float64) for array in (actual, expected))
    if ours.size == 0:
        return 0.0
    return float(np.abs(ours - theirs).max() / max(theirs.std(), np.finfo(np.float32).tiny))


def _suspects(layer: int, found: Sequence[str]) -> str:
    if len(found) == 1 and found[0].startswith("keys"):
        return f"values agree, so the input does too: look at k_proj, k_norm and RoPE of layer {layer}"
    source = "the embedding" if layer == 0 else f"attention, MLP and residuals of layer {layer - 1}"
    return f"look at {source} and at the key and value projections of layer {layer}"
