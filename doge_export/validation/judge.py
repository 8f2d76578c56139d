"""Judging the subject's logits for a batch, with allowance for positions where the reference depends on rounding.

A batch that agrees everywhere passes. A position is in doubt if rounding may change the reference itself there: it
depends on a nearly tied selection (`ambiguity.DOUBT`) or is ill-conditioned (`ambiguity.SENSITIVE`). A batch that fails
at any other position fails. One that fails only at positions in doubt is set aside, and another is drawn. If all are
set aside, the one with the fewest ties (`ambiguity.TIE`) is judged without the positions that depend on them. The
tolerance never changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from doge_export.validation.ambiguity import DOUBT, SENSITIVE, TIE
from doge_export.validation.comparison import Comparison, compare
from doge_export.validation.drilldown import first_diverging_layer
from doge_export.validation.tolerance import FLOAT32, Tolerance

if TYPE_CHECKING:
    from doge_export.runtime import Session
    from doge_export.validation.one_call import OneCall
    from doge_export.validation.oracle import Oracle, ReferenceRun

    JudgedSession: TypeAlias = Session | OneCall

DRAWS, DRAWS_WHEN_LONG = 4, 2
"""Largest number of batches drawn; the second for batches of more than LONG_BATCH tokens, which take seconds each."""

LONG_BATCH = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Tokens to feed to the subject, and the reference's result for them.

    Attributes:
        ids: int64 [B, S].
        mask: int64 [B, S], 1 for a token.
        chunks: sizes of the pieces that the tokens are fed in.
        wanted: bool [B, S], the positions that the check is to compare.
        reference: what the reference computes.
    """

    ids: np.ndarray
    mask: np.ndarray
    chunks: tuple[int, ...]
    wanted: np.ndarray
    reference: ReferenceRun

    @property
    def tied(self) -> np.ndarray:
        """Wanted positions that depend on a tie, bool [B, S]."""
        return self.wanted & (self.reference.gaps < TIE)


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """The result for a batch.

    Attributes:
        batch: the batch that was judged.
        compared: bool [B, S], the positions at which it was judged.
        comparison: the differences there.
        passed: None if ties left no position to compare.
        fault: description of the failure; empty without one.
        set_aside: number of other batches that were drawn and set aside.
    """

    batch: Batch
    compared: np.ndarray
    comparison: Comparison
    passed: bool | None
    fault: str = ""
    set_aside: int = 0

    @property
    def left_out(self) -> int:
        """Number of wanted positions that were not compared, because they depend on ties."""
        return int((self.batch.wanted & ~self.compared).sum())


def draws(tokens: int) -> int:
    """Return how many batches of `tokens` tokens may be drawn."""
    return DRAWS if tokens <= LONG_BATCH else DRAWS_WHEN_LONG


def judge(
    draw: Callable[[int], Batch],
    most: int,
    oracle: Oracle,
    session: JudgedSession,
    *,
    label: str,
    tolerance: Tolerance = FLOAT32,
) -> Judgement:
    """Judge the batches draw(0), draw(1), ... draw(most - 1) until one passes or fails without doubt.

    Args:
        draw: makes the batch of a seed.
        most: largest number of batches.
        oracle: the reference, for the sensitivity of its logits to rounding.
        session: the subject.
        label: name of the run in reports.
        tolerance: bounds that the differences must keep.
    """
    fewest_ties: Judgement | None = None
    for seed in range(most):
        batch = draw(seed)
        logits = session.logits(batch.ids, attention_mask=batch.mask, chunks=list(batch.chunks))
        judgement = _judge(batch, batch.wanted, logits, session, label, tolerance)
        doubt = "" if judgement.passed else _doubt(judgement, oracle)
        if not doubt:
            return dataclasses.replace(judgement, set_aside=seed)
        if batch.tied.any():
            judgement = _judge(batch, batch.wanted & ~batch.tied, logits, session, label, tolerance)
        if judgement.passed is False:
            judgement = dataclasses.replace(judgement, fault=f"{judgement.fault}; {doubt}")
        if fewest_ties is None or judgement.left_out < fewest_ties.left_out:
            fewest_ties = judgement
    assert fewest_ties is not None, "at least one batch must be drawn"
    return dataclasses.replace(fewest_ties, set_aside=most - 1)


def _judge(
    batch: Batch, compared: np.ndarray, logits: np.ndarray, session: JudgedSession, label: str, tolerance: Tolerance
) -> Judgement:
    """Compare `logits` at the positions `compared`, bool [B, S]. The session's cache must hold the batch."""
    reference = batch.reference
    fits = logits.shape == reference.logits.shape
    comparison = compare(
        reference.logits,
        logits if fits else reference.logits,
        compared & fits,
        batch.ids,
        label=label,
        ranked=reference.ranked,
        scale=reference.scale,
        tolerance=tolerance,
    )
    if not fits:
        fault = f"logits of shape {list(logits.shape)}, expected {list(reference.logits.shape)}"
        return Judgement(batch, compared, comparison, False, fault)
    if comparison.positions == 0 or comparison.passed:
        return Judgement(batch, compared, comparison, comparison.passed or None)
    if not reference.keys:
        fault = f"{comparison.beyond_tolerance.sum()} of {comparison.positions} answers differ"
        return Judgement(batch, compared, comparison, False, fault)
    pairs = list(zip(reference.keys, reference.values, strict=True))
    fault = first_diverging_layer(pairs, session.decoder.cache_snapshot(), compared)
    return Judgement(batch, compared, comparison, False, fault)


def _doubt(judgement: Judgement, oracle: Oracle) -> str:
    """Return why all failing positions are in doubt, in words; empty if one of them is not."""
    batch, comparison = judgement.batch, judgement.comparison
    if comparison.positions == 0 or not comparison.finite.all():
        return ""
    failing = comparison.beyond_tolerance
    if not failing.any():  # the mean KL fails, which no doubt at single positions excuses
        return ""
    at = comparison.row[failing], comparison.position[failing]
    nearly_tied = batch.reference.gaps[at] < DOUBT
    if nearly_tied.all():
        return "only behind selections that are nearly tied in the reference"
    moved = oracle.sensitivity(batch.ids, batch.mask, batch.chunks, batch.reference)[at]
    if (nearly_tied | (moved > SENSITIVE * comparison.tolerance.logits * comparison.reference_std)).all():
        return f"only where one rounding of the embeddings moves the reference itself by up to {moved.max():.1e}"
    return ""
