"""Where the reference itself hangs on rounding: selections whose last pick and first miss are as good as equal.

Doge selects twice: keys beyond keep_window_size by score, experts of CDMoE by routing sum; older generations also rows
of a table of values, keys above a share of all, and keys above a threshold. Two correct float32 implementations pick
differently where the gap is smaller than their rounding, and `torch.topk` promises no order among equals. The gaps are
the reference's own numbers, so what may be excused is known before the subject is looked at.

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
"""Below this gap, the usual rounding, the order is a matter of luck: what hangs on it is nothing to fail for."""

DOUBT = 1e-4
"""Below this gap rare rounding may decide: a batch that fails only there is set aside and another one judged."""

SENSITIVE = 0.1
"""A position is ill-conditioned if one rounding of the embeddings moves its logits by this part of the tolerance.

Layers add their own rounding to that of the input, some ten times as much: a random mixture of experts of 60M size had
a token that one rounding moves by 0.5 of the tolerance, where the median is 0.05.
"""


def selection_gaps(
    scores: Sequence[np.ndarray], mask: np.ndarray, keep_window_size: int, chunks: Sequence[int]
) -> np.ndarray:
    """The smallest relative gap of each position's key selection over layers and heads; inf without selection.

    scores: one [B, Hs, S] a layer; mask [B, S], 1 = token; chunks: the pieces the sequence was fed in. Gives [B, S].
    """
    gaps = np.full(mask.shape, np.inf)
    if keep_window_size <= 0:
        return gaps
    ends = np.repeat(np.cumsum(chunks), chunks)  # keys in the cache when each position was computed
    for row, real in enumerate(map(np.flatnonzero, mask)):
        for count in range(keep_window_size + 1, len(real) + 1):
            position = real[count - 1]
            if ends[position] > keep_window_size:
                gaps[row, position] = min(_gap(layer[row][:, real[:count]], keep_window_size) for layer in scores)
    return gaps


def routing_gaps(router_logits: Sequence[torch.Tensor], picks: int) -> np.ndarray:
    """The smallest gap over layers between the last expert picked and the first one missed.

    router_logits: one [2, N, K] a layer. Gives [N], in standard deviations of the layer's logits.
    """
    gaps = [_pair_gaps(both[0], both[1], picks) / float(both.std()) for both in router_logits]
    return np.min(gaps, axis=0)


def rank_gaps(halves: Sequence[tuple[torch.Tensor, torch.Tensor]], picks: int) -> np.ndarray:
    """As `routing_gaps` where experts are named by ranks (`Router`).

    halves: of each layer the sorted scores [N, K], and the indices that sorted them, as numbers. Two neighbours in the
    order that are nearly equal change the experts, too, if one of them is picked.
    """
    gaps = []
    for x, y in halves:
        keys = x.shape[-1]
        sums = (x.double().unsqueeze(-1) + y.double().unsqueeze(-2)).flatten(-2)
        second = sums.topk(picks, dim=-1).indices % keys
        steps = np.full((len(x), keys + 1), np.inf)
        steps[:, 1:-1] = (x[:, :-1] - x[:, 1:]).numpy()
        beside = np.minimum(steps[:, :-1], steps[:, 1:])  # the nearer neighbour of each rank
        order = np.take_along_axis(beside, second.numpy(), axis=-1).min(-1)
        gaps.append(np.minimum(_pair_gaps(x, y, picks), order) / float(x.std()))
    return np.min(gaps, axis=0)


def pick_gaps(matches: Sequence[torch.Tensor], picks: int) -> np.ndarray:
    """The smallest gap over layers and heads between the last row of a table picked and the first one missed.

    matches: one [B, heads, S, V] a layer. Gives [B, S], in standard deviations of the layer's matches.
    """
    gaps = []
    for match in matches:
        if picks < match.shape[-1]:
            last = match.topk(picks + 1, dim=-1).values[..., -2:]
            gaps.append(((last[..., 0] - last[..., 1]) / match.std()).amin(1).numpy())
    return np.min(gaps, axis=0) if gaps else np.full((matches[0].shape[0], matches[0].shape[2]), np.inf)


def ratio_gaps(scores: Sequence[np.ndarray], mask: np.ndarray, rank: int) -> np.ndarray:
    """The smallest relative gap over layers and heads between a token and the bound below which keys are left out, [B].

    scores: one [B, Hs, T] a layer, of all keys read, padding too, as it is ranked with them; mask [B, T], 1 = token.
    rank: the bound is the rank-th lowest score. Which padding falls below it does not matter.
    """
    gaps = np.full(len(mask), np.inf)
    if rank < 2:  # nothing is below the lowest
        return gaps
    for layer in scores:
        ordered = np.partition(layer, [rank - 2, rank - 1], axis=-1)
        below, bound = ordered[..., rank - 2, None], ordered[..., rank - 1, None]
        distance = np.where(layer < bound, bound - layer, layer - below) / np.abs(bound)
        constant = layer.min(-1, keepdims=True) == layer.max(-1, keepdims=True)  # A is 0: exactly so everywhere
        distance[np.broadcast_to(constant, layer.shape) | (mask[:, None] == 0)] = np.inf
        gaps = np.minimum(gaps, distance.min((1, 2)))
    return gaps


def threshold_gaps(steps: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """How far exp(step) is from 1, below which a key is left out: the smallest over layers and heads, [B, S].

    steps: one [B, Hs, S] a layer; mask [B, S], 1 = token. A step of 0 comes of A == 0 and is exact.
    """
    gaps = np.full(mask.shape, np.inf)
    for step in steps:
        away = np.where(step == 0, np.inf, np.abs(np.expm1(step.astype(np.float64)))).min(1)
        gaps = np.minimum(gaps, np.where(mask == 1, away, np.inf))
    return gaps


def spread(gaps: np.ndarray, chunks: Sequence[int], *, mixes_tokens: bool, looks_ahead: bool = False) -> np.ndarray:
    """The smallest gap each position depends on, [B, S]: its own and that of all before it in its row.

    mixes_tokens: routing carries a token's state to any token of the same call, in every row.
    looks_ahead: tokens depend on all those of their row in the same call.
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
    """The gap between the picks-th and the next best sum of a pair of scores [N, K] each; inf without a next one."""
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
    """Relative gap between the `keep`-th and the next best of the scores [Hs, n], the smallest over heads."""
    size = scores.shape[-1]
    ordered = np.partition(scores, [size - keep - 1, size - keep], axis=-1)
    kept, left = ordered[:, size - keep], ordered[:, size - keep - 1]
    return float(((kept - left) / np.maximum(np.abs(kept), np.finfo(np.float32).tiny)).min())
