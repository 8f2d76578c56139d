"""Position-by-position comparison of two tensors of logits.

Every number is kept per position, because the positions hint at the fault: it may begin at keep_window_size, grow with
the position, or be confined to padded rows. The aggregates of a check are computed from these arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from doge_export.numerics import kl_divergence, log_softmax
from doge_export.validation.tolerance import FLOAT32, Tolerance

HISTOGRAM_EDGES = np.arange(-12.0, 2.01, 0.25)
"""Edges of the histogram of log10 |difference|; smaller and larger differences fall into the outer bins."""

_BLOCK = 64  # positions at a time, since the float64 intermediates of a whole long prompt do not fit into memory


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Differences at N compared positions.

    Attributes:
        labels: names of the runs that the positions come from.
        run: int64 [N], index into `labels`.
        row: int64 [N], row in the batch.
        position: int64 [N], position in the row, padding included.
        token: int64 [N], token id.
        max_abs: float64 [N], largest difference of a logit.
        mean_abs: float64 [N], mean difference of the logits.
        kl: float64 [N], KL(reference || subject) in nats.
        margin: float64 [N], difference of the reference's two best logits.
        finite: bool [N], all logits of both sides are finite.
        argmax_equal: bool [N], both sides have the same best logit.
        histogram: int64, number of logits by log10 |difference|, over HISTOGRAM_EDGES.
        count: number of logits of the reference.
        total: their sum.
        squares: sum of their squares.
        ranked: True where the best logit is an answer. Hidden states have no best element and no KL.
        scale: standard deviation that differences are measured in; None for that of the compared logits.
        tolerance: bounds that the differences must keep.
    """

    labels: tuple[str, ...]
    run: np.ndarray
    row: np.ndarray
    position: np.ndarray
    token: np.ndarray
    max_abs: np.ndarray
    mean_abs: np.ndarray
    kl: np.ndarray
    margin: np.ndarray
    finite: np.ndarray
    argmax_equal: np.ndarray
    histogram: np.ndarray
    count: int
    total: float
    squares: float
    ranked: bool = True
    scale: float | None = None
    tolerance: Tolerance = FLOAT32

    @property
    def positions(self) -> int:
        """Number of compared positions."""
        return len(self.row)

    @property
    def reference_std(self) -> float:
        """`scale` if given, else the standard deviation of the reference's compared logits."""
        if self.scale is not None:
            return self.scale
        if self.count == 0:
            return math.nan
        return math.sqrt(max(self.squares / self.count - (self.total / self.count) ** 2, 0.0))

    @property
    def near_tie(self) -> np.ndarray:
        """Positions at which the reference's two best logits are nearly equal, so either may be the best; bool [N]."""
        return self.margin <= self.tolerance.tie(self.reference_std)

    @property
    def argmax_disagreements(self) -> np.ndarray:
        """Positions at which the argmax differs although the reference has no near tie; bool [N]."""
        return ~self.argmax_equal & ~self.near_tie

    @property
    def beyond_tolerance(self) -> np.ndarray:
        """Positions that fail, bool [N]: the difference is too large, a logit is not finite, or the argmax disagrees.

        Disagreements fail only if there are more of them than the tolerance allows.
        """
        close = self.max_abs <= self.tolerance.logits * self.reference_std
        disagreements = self.argmax_disagreements
        too_many = disagreements.sum() > self.tolerance.allowed(self.positions)
        return ~(self.finite & close) | (disagreements & too_many)

    @property
    def passed(self) -> bool:
        """True if at least one position was compared, none fails, and their mean KL is within the tolerance."""
        if self.positions == 0 or self.beyond_tolerance.any():
            return False
        return float(self.kl.mean()) <= self.tolerance.mean_kl

    def metrics(self) -> dict[str, Any]:
        """Return the aggregates of a check as JSON values, with argmax and KL only if `ranked`.

        Differences are None if a logit is not finite.
        """
        if self.positions == 0:
            return {"positions": 0}
        finite = bool(self.finite.all())
        worst = int(np.argmax(np.where(self.finite, self.max_abs, np.inf)))
        std = self.reference_std
        largest = float(self.max_abs.max()) if finite else None
        differences = {
            "positions": self.positions,
            "last_position": int(self.position.max()),
            "finite": finite,
            "max_abs": largest,
            "mean_abs": float(self.mean_abs.mean()) if finite else None,
            "reference_std": std,
            "max_abs_over_std": largest / std if largest is not None and std > 0 else None,
            "worst": {
                "run": self.labels[self.run[worst]],
                "row": int(self.row[worst]),
                "position": int(self.position[worst]),
                "token": int(self.token[worst]),
            },
            "beyond_tolerance": int(self.beyond_tolerance.sum()),
        }
        if not self.ranked:
            return differences
        return differences | {
            "argmax_agreement": float(self.argmax_equal.mean()),
            "argmax_disagreements": int(self.argmax_disagreements.sum()),
            "near_ties": int(self.near_tie.sum()),
            "near_ties_decided_otherwise": int((~self.argmax_equal & self.near_tie).sum()),
            "kl_mean": float(self.kl.mean()) if finite else None,
            "kl_max": float(self.kl.max()) if finite else None,
        }


def compare(
    reference: np.ndarray,
    subject: np.ndarray,
    selected: np.ndarray,
    input_ids: np.ndarray,
    *,
    label: str,
    ranked: bool = True,
    scale: float | None = None,
    tolerance: Tolerance = FLOAT32,
) -> Comparison:
    """Compare logits at selected positions.

    Args:
        reference: float32 [B, S, V].
        subject: float32 [B, S, V].
        selected: bool [B, S], the positions to compare.
        input_ids: int64 [B, S], the tokens named in reports.
        label: name of the run.
        ranked: see `Comparison`.
        scale: see `Comparison`.
        tolerance: see `Comparison`.
    """
    rows, positions = np.nonzero(selected)
    size = len(rows)
    columns = {name: np.zeros(size) for name in ("max_abs", "mean_abs", "kl", "margin")}
    columns["margin"] += np.inf
    finite, argmax_equal = np.zeros(size, bool), np.ones(size, bool)
    histogram = np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64)
    total = squares = 0.0
    for start in range(0, size, _BLOCK):
        part = slice(start, min(start + _BLOCK, size))
        at = rows[part], positions[part]
        ours, theirs = subject[at].astype(np.float64), reference[at].astype(np.float64)
        finite[part] = np.isfinite(ours).all(-1) & np.isfinite(theirs).all(-1)
        ours[~finite[part]] = 0.0  # such a position fails anyway; it must not turn the aggregates into NaN
        theirs[~finite[part]] = 0.0
        difference = np.abs(ours - theirs)
        columns["max_abs"][part] = difference.max(-1)
        columns["mean_abs"][part] = difference.mean(-1)
        if ranked:
            columns["kl"][part] = kl_divergence(log_softmax(theirs), log_softmax(ours))
            best = np.partition(theirs, -2, axis=-1)
            columns["margin"][part] = np.where(finite[part], best[:, -1] - best[:, -2], np.inf)
            argmax_equal[part] = (ours.argmax(-1) == theirs.argmax(-1)) & finite[part]
        magnitude = np.log10(np.maximum(difference[finite[part]], 1e-300))
        histogram += np.histogram(np.clip(magnitude, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]), HISTOGRAM_EDGES)[0]
        total += float(theirs.sum())
        squares += float((theirs**2).sum())
    return Comparison(
        labels=(label,),
        run=np.zeros(size, np.int64),
        row=rows,
        position=positions,
        token=input_ids[rows, positions],
        finite=finite,
        argmax_equal=argmax_equal,
        histogram=histogram,
        count=size * reference.shape[-1],
        total=total,
        squares=squares,
        ranked=ranked,
        scale=scale,
        tolerance=tolerance,
        **columns,
    )


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """Join the comparisons of several runs into one, in their order."""
    runs: list[np.ndarray] = []
    labels: list[str] = []
    for part in parts:
        runs.append(part.run + len(labels))
        labels.extend(part.labels)
    per_position = ("row", "position", "token", "max_abs", "mean_abs", "kl", "margin", "finite", "argmax_equal")
    return Comparison(
        labels=tuple(labels),
        run=np.concatenate(runs),
        histogram=np.sum([part.histogram for part in parts], axis=0),
        count=sum(part.count for part in parts),
        total=sum(part.total for part in parts),
        squares=sum(part.squares for part in parts),
        ranked=all(part.ranked for part in parts),
        scale=parts[0].scale,
        tolerance=parts[0].tolerance,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in per_position},
    )
