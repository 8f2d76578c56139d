"""Positions at which the reference itself depends on rounding, because a selection is nearly tied.

Doge selects keys beyond keep_window_size by score, and experts of CDMoE by the sum of two routing scores. Older
generations also select rows of a table of values, a share of the keys, and keys above a threshold. Two correct float32
implementations select differently where the gap between the last element picked and the first one left out is smaller
than their rounding, and `torch.topk` promises no order among equals. The gaps are computed from the reference alone, so
the positions that may differ are known before the subject runs.

Measured on random models of 20M and 60M size with and without experts, float32 against float64: scores (relative) and
routing logits (over their standard deviation) are off by 1e-6 to 2e-6 on average, by up to 3e-5 at single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

TIE = 3e-6
"""Gap of a tie: usual rounding decides the order below it, so no check fails for what depends on the selection."""

DOUBT = 1e-4
"""Gap below which rare rounding may decide: a batch that fails only there is set aside and another one is judged."""

SENSITIVE = 0.1
"""Share of the tolerance by which one rounding of the embeddings moves the logits of an ill-conditioned position.

The layers' own rounding adds about ten times that of the input. In a random mixture of experts of 60M size, one
rounding of the embeddings moved one token by 0.5 of the tolerance; the median was 0.05.
"""


def selection_gaps(
    scores: Sequence[np.ndarray], mask: np.ndarray, keep_window_size: int, chunks: Sequence[int]
) -> np.ndarray:
    """Compute the smallest relative gap, over layers and heads, in each position's selection of keys.

    Args:
        scores: one array [B, Hs, S] for each layer.
        mask: [B, S], 1 for a token.
        keep_window_size: number of keys kept.
        chunks: sizes of the pieces that the sequence is fed in.

    Returns:
        [B, S]; inf where every key is kept.
    """
    gaps = np.full(mask.shape, np.inf)
    if keep_window_size <= 0:
        return gaps
    ends = np.repeat(np.cumsum(chunks), chunks)  # number of keys in the cache when each position is computed
    for row, real in enumerate(map(np.flatnonzero, mask)):
        for count in range(keep_window_size + 1, len(real) + 1):
            position = real[count - 1]
            if ends[position] > keep_window_size:
                gaps[row, position] = min(_gap(layer[row][:, real[:count]], keep_window_size) for layer in scores)
    return gaps


def routing_gaps(router_logits: Sequence[torch.Tensor], picks: int) -> np.ndarray:
    """Compute the smallest gap, over layers, between the last expert picked and the first one left out.

    Args:
        router_logits: one tensor [2, N, K] for each layer, the scores of both halves for N tokens.
        picks: number of experts picked for a token.

    Returns:
        [N], in standard deviations of the layer's logits.
    """
    gaps = [_pair_gaps(both[0], both[1], picks) / float(both.std()) for both in router_logits]
    return np.min(gaps, axis=0)


def rank_gaps(halves: Sequence[tuple[torch.Tensor, torch.Tensor]], picks: int) -> np.ndarray:
    """Compute the gaps of `routing_gaps` for routers that number experts by rank (`Router`).

    There, two neighbours in the sorted order that are nearly equal also change the experts, if one of them is picked.

    Args:
        halves: for each layer the sorted scores [N, K], and the indices that sorted them, as floats.
        picks: number of experts picked for a token.

    Returns:
        [N], in standard deviations of the layer's sorted scores.
    """
    gaps = []
    for x, y in halves:
        keys = x.shape[-1]
        sums = (x.double().unsqueeze(-1) + y.double().unsqueeze(-2)).flatten(-2)
        second = sums.topk(picks, dim=-1).indices % keys
        steps = np.full((len(x), keys + 1), np.inf)
        steps[:, 1:-1] = (x[:, :-1] - x[:, 1:]).numpy()
        beside = np.minimum(steps[:, :-1], steps[:, 1:])  # distance to the nearer neighbour of each rank
        order = np.take_along_axis(beside, second.numpy(), axis=-1).min(-1)
        gaps.append(np.minimum(_pair_gaps(x, y, picks), order) / float(x.std()))
    return np.min(gaps, axis=0)


def pick_gaps(matches: Sequence[torch.Tensor], picks: int) -> np.ndarray:
    """Compute the smallest gap, over layers and heads, between the last table row picked and the first one left out.

    Args:
        matches: one tensor [B, heads, S, V] for each layer, the scores of V rows.
        picks: number of rows picked by a head.

    Returns:
        [B, S], in standard deviations of the layer's scores; inf where every row is picked.
    """
    gaps = []
    for match in matches:
        if picks < match.shape[-1]:
            last = match.topk(picks + 1, dim=-1).values[..., -2:]
            gaps.append(((last[..., 0] - last[..., 1]) / match.std()).amin(1).numpy())
    return np.min(gaps, axis=0) if gaps else np.full((matches[0].shape[0], matches[0].shape[2]), np.inf)


def ratio_gaps(scores: Sequence[np.ndarray], mask: np.ndarray, rank: int) -> np.ndarray:
    """Compute the smallest relative gap, over layers, heads and tokens, to the score below which a key is masked.

    Args:
        scores: one array [B, Hs, T] for each layer, of all keys read. Padding counts, as it is ranked with the tokens.
        mask: [B, T], 1 for a token. Which padding is masked does not matter.
        rank: keys below the rank-th lowest score are masked.

    Returns:
        [B]; inf where no key is masked.
    """
    gaps = np.full(len(mask), np.inf)
    if rank < 2:  # no key is below the lowest
        return gaps
    for layer in scores:
        ordered = np.partition(layer, [rank - 2, rank - 1], axis=-1)
        below, bound = ordered[..., rank - 2, None], ordered[..., rank - 1, None]
        distance = np.where(layer < bound, bound - layer, layer - below) / np.abs(bound)
        constant = layer.min(-1, keepdims=True) == layer.max(-1, keepdims=True)  # A is 0: equal without any rounding
        distance[np.broadcast_to(constant, layer.shape) | (mask[:, None] == 0)] = np.inf
        gaps = np.minimum(gaps, distance.min((1, 2)))
    return gaps


def threshold_gaps(steps: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Compute the smallest distance, over layers and heads, of exp(step) from 1, below which a key is masked.

    Args:
        steps: one array [B, Hs, S] for each layer. A step of 0 comes of A == 0 and is exact.
        mask: [B, S], 1 for a token.

    Returns:
        [B, S]; inf for padding.
    """
    gaps = np.full(mask.shape, np.inf)
    for step in steps:
        away = np.where(step == 0, np.inf, np.abs(np.expm1(step.astype(np.float64)))).min(1)
        gaps = np.minimum(gaps, np.where(mask == 1, away, np.inf))
    return gaps


def spread(gaps: np.ndarray, chunks: Sequence[int], *, mixes_tokens: bool, looks_ahead: bool = False) -> np.ndarray:
    """Compute the smallest gap that each position depends on: its own and those of earlier positions in its row.

    Args:
        gaps: [B, S], each position's own gap.
        chunks: sizes of the pieces that the sequence is fed in, one piece a call.
        mixes_tokens: every token depends on all tokens of the same call, in all rows (reference CDMoE routing).
        looks_ahead: every token depends on all tokens of its row in the same call.

    Returns:
        [B, S].
    """
    if mixes_tokens or looks_ahead:
        axis = None if mixes_tokens else 1
        start = 0
        gaps = gaps.copy()
        for size in chunks:
            part = slice(start, start + size)
            gaps[:, part] = gaps[:, part].min(axis=axis, keepdims=True)
            start += size
    return np.minimum.accumulate(gaps, axis=1)


def _pair_gaps(x: torch.Tensor, y: torch.Tensor, picks: int) -> np.ndarray:
    """Compute the gap between the picks-th and the next best sum of x [N, K] and y [N, K], [N]; inf without a next."""
    keys = x.shape[-1]
    if picks >= keys * keys:
        return np.full(x.shape[0], np.inf)
    # The best picks + 1 pairs lie among the best picks + 1 of each half.
    best = min(picks + 1, keys)
    halves = x.topk(best, dim=-1).values, y.topk(best, dim=-1).values
    sums = (halves[0].unsqueeze(-1) + halves[1].unsqueeze(-2)).flatten(-2)
    last = sums.topk(picks + 1, dim=-1).values[:, -2:]
    return (last[:, 0] - last[:, 1]).numpy()


def _gap(scores: np.ndarray, keep: int) -> float:
    """Compute the relative gap between the `keep`-th and the next best of the scores [Hs, n], smallest over heads."""
    size = scores.shape[-1]
    ordered = np.partition(scores, [size - keep - 1, size - keep], axis=-1)
    kept, left = ordered[:, size - keep], ordered[:, size - keep - 1]
    return float(((kept - left) / np.maximum(np.abs(kept), np.finfo(np.float32).tiny)).min())
