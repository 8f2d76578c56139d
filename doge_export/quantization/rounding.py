"""Scales and zero points for blocks, and codes by rounding to the nearest.

The plain rule puts the largest weight of a block on the last code. For 8 bits that is as good as it gets. With 16 codes
clipping the largest pays, because the others then get finer steps: `fitted` tries shrunken ranges for each block, fits
the scale to the codes by least squares, and keeps the best. Errors may be weighted by column, by the importance of the
inputs that a weight is multiplied with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from doge_export.quantization.blocks import Blocks

SHRINKING = tuple(np.linspace(1.0, 0.6, 17))
_CHUNK = 2**18  # weights at once, so that intermediates stay in the processor's cache
_TINY = np.float32(1e-30)


def nearest(weight: np.ndarray, bits: int, block: int, *, symmetric: bool = True) -> Blocks:
    """Quantize a weight, float32 [N, K], by the plain rule: the error of every weight is at most half a step."""
    return _each_chunk(weight, bits, block, None, symmetric, (1.0,), fits=False)


def fitted(
    weight: np.ndarray, bits: int, block: int, importance: np.ndarray | None = None, *, symmetric: bool = True
) -> Blocks:
    """Quantize a weight, float32 [N, K], with scales of least squared error, weighted by `importance` [K] or [N, K]."""
    return _each_chunk(weight, bits, block, importance, symmetric, SHRINKING, fits=True)


def _each_chunk(
    weight: np.ndarray,
    bits: int,
    block: int,
    importance: np.ndarray | None,
    symmetric: bool,
    shrinking: Iterable[float],
    fits: bool,
) -> Blocks:
    rows, width = weight.shape
    blocks = width // block
    step = max(1, _CHUNK // width)
    parts = []
    for start in range(0, rows, step):
        piece = weight[start : start + step].reshape(-1, blocks, block)
        if importance is None:
            weights = np.ones((1, blocks, block), np.float32)
        else:
            rows_of = importance if importance.ndim == 1 else importance[start : start + step]
            weights = rows_of.reshape(-1, blocks, block)
        parts.append(_best(piece, weights, bits, symmetric, shrinking, fits))
    codes, scales, zeros = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Blocks(bits, codes, scales, None if symmetric else zeros)


def _best(
    w: np.ndarray, importance: np.ndarray, bits: int, symmetric: bool, shrinking: Iterable[float], fits: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, scales and zero points of w [n, blocks, block]."""
    last, middle = 2**bits - 1, 2 ** (bits - 1)
    candidates = []
    if symmetric:
        extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]
        middles = np.full(extreme.shape, middle, np.float32)
        for factor in shrinking:
            if fits:  # also with the largest weight on code 0, one step further from the middle than the last code
                candidates.append((-extreme * np.float32(factor / middle), middles))
            candidates.append((np.abs(extreme) * np.float32(factor / (last - middle)), middles))
    else:
        low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
        for factor in shrinking:
            scale = (high - low) * np.float32(factor / last)
            zero = np.rint(np.clip(-low * np.float32(factor) / np.where(scale == 0, 1, scale), 0, last))
            candidates.append((scale, zero))
    best: tuple[np.ndarray, ...] = ()
    for scale, zero in candidates:
        offsets = _offsets(w, scale, zero, last)
        if fits:
            scale = _least_squares(w, importance, offsets, scale)
        if len(candidates) == 1:
            best = (np.zeros(scale.shape), offsets, scale, zero)
            break
        error = (importance * (w - offsets * scale[..., None]) ** 2).sum(-1)
        if not best:
            best = (error, offsets, scale, zero)
            continue
        better = error < best[0]
        pairs = zip((error, offsets, scale, zero), best, strict=True)
        best = tuple(np.where(better[..., None] if new.ndim == 3 else better, new, old) for new, old in pairs)
    _, offsets, scale, zero = best
    return (offsets + zero[..., None]).astype(np.uint8), scale.astype(np.float32), zero.astype(np.uint8)


def _offsets(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, last: int) -> np.ndarray:
    """Return the codes of w at the given scales, less the zero point."""
    safe = np.where(scale == 0, _TINY, scale)[..., None]
    zero = zero[..., None]
    return np.clip(np.rint(w / safe), -zero, last - zero)


def _least_squares(w: np.ndarray, importance: np.ndarray, offsets: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the scales of least squared error for the given codes."""
    weighted = importance * offsets
    square = (weighted * offsets).sum(-1)
    return np.where(square > 0, (weighted * w).sum(-1) / np.where(square > 0, square, 1), scale)
