"""The check of greedy decoding: the subject must give the tokens of `Oracle.generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.errors import RunFailed
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.token_ids import common_prefix
from doge_export.validation.check_plan import LONG, Run, SubjectTraits
from doge_export.validation.judge import Batch, draws, judge
from doge_export.validation.logits import tie_notes
from doge_export.validation.verdict import CheckResult

if TYPE_CHECKING:
    from doge_export.runtime import Session
    from doge_export.validation.oracle import Oracle

NAME = "greedy generation"


def check_greedy(oracle: Oracle, session: Session, traits: SubjectTraits) -> CheckResult:
    """Let both sides generate and compare the ids; then feed the subject the reference's answer and compare logits.

    After a near tie the two answers may differ for good reason, so from there on only the teacher-forced logits are
    compared. The answer is long enough to pass keep_window_size if that takes at most `LONG` tokens.
    """
    length = min(16, traits.max_length // 2)
    window = traits.keep_window_size
    new = min(traits.max_length - length, window if traits.steps < window <= LONG else traits.steps)
    description = f"{new} new tokens after a prompt of {length}"
    if length < 1:
        return CheckResult(NAME, description, None, note=f"not run: max_length {traits.max_length} leaves no room")

    def draw(seed: int) -> Batch:
        prompt = Run(NAME, (length,), (length,)).batch(traits, seed)[0][0].tolist()
        answer = oracle.generate(prompt, new)
        ids = np.array([prompt + answer])
        mask = np.ones_like(ids)
        chunks = (length, *(1,) * new)
        wanted = np.arange(length + new)[None] >= length - 1
        return Batch(ids, mask, chunks, wanted, oracle.run(ids, mask, chunks))

    judgement = judge(draw, draws(length + new), oracle, session, label="teacher-forced", tolerance=traits.tolerance)
    batch, comparison = judgement.batch, judgement.comparison
    ids = batch.ids[0].tolist()
    prompt, expected = ids[:length], ids[length:]
    try:
        generated: Any = session.generate(
            prompt,
            max_new_tokens=new,
            defaults=GenerationConfig(),  # none of the folder's settings, and no eos token
        )
    except RunFailed as error:  # logits that are not finite fail the check, not the whole comparison
        return CheckResult(NAME, description, False, comparison.metrics(), str(error), comparison)
    answer = list(generated.token_ids)
    same, note = _judge_ids(
        answer, expected, batch, length - 1, oracle.name, traits.tolerance.tie(comparison.reference_std)
    )
    passed = same and judgement.passed
    metrics = comparison.metrics() | {
        "left_out": judgement.left_out,
        "new_tokens": new,
        "same_tokens": common_prefix(answer, expected),
    }
    notes = [note, *([traits.pieces_note] if traits.pieces_note else []), *tie_notes([judgement])]
    return CheckResult(NAME, description, passed, metrics, "; ".join(notes), comparison)


def _judge_ids(
    answer: list[int], expected: list[int], batch: Batch, first: int, judge: str, near_tie: float
) -> tuple[bool, str]:
    """Return whether `answer` equals `expected` up to the first tie, and a note on it.

    Token i of an answer is chosen by the logits at position `first + i`.
    """
    if answer == expected:
        return True, f"{len(expected)} of {len(expected)} tokens are those of {judge}"
    if len(answer) != len(expected):
        return False, f"{len(answer)} tokens generated, {judge} generates {len(expected)}"
    at = common_prefix(answer, expected)
    said = f"token {at} is {answer[at]}, that of {judge} is {expected[at]}"
    if batch.tied[0, first + at]:
        return True, f"{said}, behind a choice between equals"
    logits = batch.reference.logits[0, first + at]
    gap = float(logits.max() - logits[answer[at]])
    if gap <= near_tie:
        return True, f"{said}: a near tie, {gap:.1e} apart; judged by teacher-forced logits from there on"
    return False, f"{said}, {gap:.1e} better in the reference"
