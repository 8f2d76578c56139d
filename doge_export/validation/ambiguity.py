"""Where the reference itself hangs on rounding: selections whose last pick and first miss are as good as equal.

Doge selects twice: keys beyond keep_window_size by score, experts of CDMoE by routing sum. Two correct float32
implementations pick differently where the gap is smaller than their rounding, and `torch.topk` promises no order among
equals. The gaps are the reference's own numbers, so what may be excused is known before the subject is looked at.

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
    gaps = []
    for logits in router_logits:
        keys = logits.shape[-1]
        if picks >= keys * keys:
            continue
        # The best picks + 1 pairs lie among the best picks + 1 of each half.
        best = logits.topk(min(picks + 1, keys), dim=-1).values
        sums = (best[0].unsqueeze(-1) + best[1].unsqueeze(-2)).flatten(-2)
        last = sums.topk(picks + 1, dim=-1).values[:, -2:]
        gaps.append(((last[:, 0] - last[:, 1]) / logits.std()).numpy())
    return np.min(gaps, axis=0) if gaps else np.full(router_logits[0].shape[1], np.inf)


def spread(gaps: np.ndarray, chunks: Sequence[int], *, mixes_tokens: bool) -> np.ndarray:
    """The smallest gap each position depends on, [B, S]: its own and that of all before it in its row.

    mixes_tokens: routing carries a token's state to any token of the same call, in every row.
    """
    if mixes_tokens:
        start = 0
        gaps = gaps.copy()
        for size in chunks:
            gaps[:, start : start + size] = gaps[:, start : start + size].min()
            start += size
    return np.minimum.accumulate(gaps, axis=1)


def _gap(scores: np.ndarray, keep: int) -> float:
    """Relative gap between the `keep`-th and the next best of the scores [Hs, n], the smallest over heads."""
    size = scores.shape[-1]
    ordered = np.partition(scores, [size - keep - 1, size - keep], axis=-1)
    kept, left = ordered[:, size - keep], ordered[:, size - keep - 1]
    return float(((kept - left) / np.abs(kept)).min())
