"""One batch judged: the subject's logits against the reference's, with the reference's own doubts taken into account.

A batch that agrees everywhere passes. One that fails somewhere without doubt fails. One that fails only at positions
which hang on rounding in the reference itself, behind a selection nearly tied (`ambiguity.DOUBT`) or ill-conditioned
(`ambiguity.SENSITIVE`), is set aside and another is drawn. If all are set aside, the one with the fewest ties
(`ambiguity.TIE`) is judged without what hangs on them. No tolerance moves.
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
"""Batches drawn at most; the second for those of more than LONG_BATCH tokens, which take seconds each."""

LONG_BATCH = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Tokens to feed (ids, mask int64 [B, S], in pieces of `chunks`), the positions `wanted` [B, S] and the truth."""

    ids: np.ndarray
    mask: np.ndarray
    chunks: tuple[int, ...]
    wanted: np.ndarray
    reference: ReferenceRun

    @property
    def tied(self) -> np.ndarray:
        """[B, S] bool: the wanted positions that hang on a tie."""
        return self.wanted & (self.reference.gaps < TIE)


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """What became of a batch, judged at the positions `compared` [B, S].

    passed is None where ties left nothing to compare; set_aside counts the other batches drawn.
    """

    batch: Batch
    compared: np.ndarray
    comparison: Comparison
    passed: bool | None
    fault: str = ""
    set_aside: int = 0

    @property
    def left_out(self) -> int:
        """How many wanted positions were not compared, because they hang on ties."""
        return int((self.batch.wanted & ~self.compared).sum())


def draws(tokens: int) -> int:
    """How many batches of so many tokens may be drawn."""
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
    """Judge the batches draw(0), draw(1), ... draw(most - 1) until one decides."""
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
    """Compare at the positions `compared`, bool [B, S]; the caches of the session must be those of the batch."""
    reference = batch.reference
    if logits.shape != reference.logits.shape:
        nothing = compare(
            reference.logits,
            reference.logits,
            np.zeros_like(compared),
            batch.ids,
            label=label,
            ranked=reference.ranked,
            scale=reference.scale,
            tolerance=tolerance,
        )
        fault = f"logits of shape {list(logits.shape)}, expected {list(reference.logits.shape)}"
        return Judgement(batch, compared, nothing, False, fault)
    comparison = compare(
        reference.logits,
        logits,
        compared,
        batch.ids,
        label=label,
        ranked=reference.ranked,
        scale=reference.scale,
        tolerance=tolerance,
    )
    if comparison.positions == 0 or comparison.passed:
        return Judgement(batch, compared, comparison, comparison.passed or None)
    if not reference.keys:
        fault = f"{comparison.beyond_tolerance.sum()} of {comparison.positions} answers differ"
        return Judgement(batch, compared, comparison, False, fault)
    pairs = list(zip(reference.keys, reference.values, strict=True))
    fault = first_diverging_layer(pairs, session.decoder.cache_snapshot(), compared)
    return Judgement(batch, compared, comparison, False, fault)


def _doubt(judgement: Judgement, oracle: Oracle) -> str:
    """Why every position that fails may fail rightly, in words; empty where one of them may not."""
    batch, comparison = judgement.batch, judgement.comparison
    if comparison.positions == 0 or not comparison.finite.all():
        return ""
    failing = comparison.beyond_tolerance
    if not failing.any():  # it fails by its mean
        return ""
    at = comparison.row[failing], comparison.position[failing]
    nearly_tied = batch.reference.gaps[at] < DOUBT
    if nearly_tied.all():
        return "only behind selections that are nearly tied in the reference"
    moved = oracle.sensitivity(batch.ids, batch.mask, batch.chunks, batch.reference)[at]
    if (nearly_tied | (moved > SENSITIVE * comparison.tolerance.logits * comparison.reference_std)).all():
        return f"only where one rounding of the embeddings moves the reference itself by up to {moved.max():.1e}"
    return ""
