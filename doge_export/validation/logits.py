"""The checks that compare logits, each over a few planned batches."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from doge_export.validation.check_plan import MARGIN, PlannedCheck, Run, SubjectTraits
from doge_export.validation.comparison import concatenate
from doge_export.validation.judge import Batch, Judgement, draws, judge
from doge_export.validation.verdict import CheckResult

if TYPE_CHECKING:
    import numpy as np

    from doge_export.validation.judge import JudgedSession
    from doge_export.validation.oracle import Oracle


def check_logits(
    check: PlannedCheck, oracle: Oracle, session: JudgedSession, traits: SubjectTraits, scale: float | None = None
) -> CheckResult:
    """Run a planned check; `scale` is that of `ReferenceRun`."""
    result = CheckResult(check.name, check.description, None)
    if check.not_run:
        return dataclasses.replace(result, note=f"not run: {check.not_run}")
    judgements = [_judge_run(run, check.beyond, oracle, session, traits, scale) for run in check.runs]
    notes = [check.note] if check.note else []
    notes += tie_notes(judgements)
    passed: bool | None = all(judgement.passed is not False for judgement in judgements)
    if passed and not all(_reaches(judgement, check.beyond) for judgement in judgements):
        passed = None
        cause = "some A is 0, so all its scores are equal" if oracle.selection_is_void else "its scores tie"
        notes.append(f"not comparable: {cause}, and the reference's choice among equals is unspecified")
    comparison = concatenate([judgement.comparison for judgement in judgements])
    left_out = sum(judgement.left_out for judgement in judgements)
    metrics = comparison.metrics() | {"left_out": left_out}
    return dataclasses.replace(result, passed=passed, metrics=metrics, note="; ".join(notes), comparison=comparison)


def tie_notes(judgements: list[Judgement]) -> list[str]:
    """Return notes for the reader on positions left out for ties, on batches set aside, and on the first fault."""
    faults = [f"{judgement.comparison.labels[0]}: {judgement.fault}" for judgement in judgements if judgement.fault]
    left_out = sum(judgement.left_out for judgement in judgements)
    set_aside = sum(judgement.set_aside for judgement in judgements)
    notes = []
    if left_out:
        notes.append(f"{left_out} positions left out, at and behind a choice between equals")
    if set_aside:
        batches = "1 batch" if set_aside == 1 else f"{set_aside} batches"
        notes.append(f"{batches} set aside, differing only where rounding decides in the reference itself")
    return notes + faults[:1]


def _judge_run(
    run: Run, beyond: int, oracle: Oracle, session: JudgedSession, traits: SubjectTraits, scale: float | None
) -> Judgement:
    def draw(seed: int) -> Batch:
        ids, mask = run.batch(traits, seed)
        reference = dataclasses.replace(oracle.run(ids, mask, run.chunks), scale=scale)
        return Batch(ids, mask, run.chunks, _wanted(mask, beyond, traits), reference)

    most = 1 if oracle.selection_is_void else draws(run.length * len(run.rows))
    return judge(draw, most, oracle, session, label=run.label, tolerance=traits.tolerance)


def _wanted(mask: np.ndarray, beyond: int, traits: SubjectTraits) -> np.ndarray:
    """Return the positions to compare, bool [B, S].

    For a classifier it is the last token of a row: the row's scores are the same at each of its tokens and depend on
    all of them.
    """
    count = mask.cumsum(-1)
    if traits.task == "text-classification":
        return (mask == 1) & (count == count[:, -1:])
    return (mask == 1) & (count > beyond - MARGIN)


def _reaches(judgement: Judgement, beyond: int) -> bool:
    """Return whether a position beyond the first `beyond` tokens of a row was compared."""
    return bool((judgement.compared & (judgement.batch.mask.cumsum(-1) > beyond)).any())
