"""The checks of models without a language model's head, which answer a batch in one call.

Padding may be on either side. Positions count from 0, padding included, as in transformers without position_ids.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.validation.check_plan import LONG, MEDIUM, PlannedCheck, Run, Side, SubjectTraits, plan_checks

if TYPE_CHECKING:
    from doge_export.runtime import ClassificationSession, FeatureSession
    from doge_export.validation.oracle import Oracle

ROWS = 16
"""Number of rows whose scores give the standard deviation that a classifier's differences are measured in."""


class OneCall:
    """An adapter that gives a feature or classification session the `logits` of a language model's `Session`."""

    decoder: Any = None

    def __init__(self, session: FeatureSession | ClassificationSession) -> None:
        self._session: Any = session

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, chunks: Any = None) -> np.ndarray:
        """Return hidden states [B, S, H], or the class scores of each row, repeated at each of its tokens [B, S, L]."""
        if self._session.task == "feature-extraction":
            return self._session.hidden_states(input_ids, attention_mask)
        return np.repeat(self._session.logits(input_ids, attention_mask)[:, None], input_ids.shape[1], axis=1)


def plan_one_call(traits: SubjectTraits) -> list[PlannedCheck]:
    """Plan the checks of a feature or classification model, in order."""
    classifies = traits.task == "text-classification"
    long = LONG // 2 if traits.mixes_tokens else LONG
    simple = min(traits.max_length, traits.keep_window_size or traits.max_length, traits.trained_length)
    lengths = dict.fromkeys(max(min(simple, long) // part, 1) for part in (1, 2, 5, long))
    checks = [
        PlannedCheck(
            "single rows",
            f"rows of {', '.join(map(str, lengths))} tokens, each by itself",
            tuple(Run(f"{length} tokens", (length,), (length,)) for length in lengths),
        ),
        _padded(min(simple, MEDIUM), traits, "left"),
        _padded(min(simple, MEDIUM), traits, "right"),
    ]
    if classifies:
        checks.append(_with_padding_ids(min(simple, MEDIUM), traits))
    for check in plan_checks(traits):
        if check.name.startswith("beyond"):
            runs = tuple(run for run in check.runs if len(run.chunks) == 1)
            if classifies and traits.lacks_pad_id:
                runs = tuple(Run(run.label, run.rows[:1], run.chunks) for run in runs)
            checks.append(dataclasses.replace(check, runs=runs))
    return checks


def answer_scale(oracle: Oracle, traits: SubjectTraits) -> float | None:
    """Compute the standard deviation of a classifier's scores over rows and classes; None for other tasks.

    The scores of a single row are too few for it: with two classes they may be almost equal by chance.
    """
    if traits.task != "text-classification":
        return None
    run = Run("scale", (min(traits.max_length, ROWS),), (min(traits.max_length, ROWS),))
    scores = [oracle.run(*run.batch(traits, seed), run.chunks).logits[0, 0] for seed in range(ROWS)]
    return float(np.std(scores, dtype=np.float64))


def _padded(length: int, traits: SubjectTraits, side: Side) -> PlannedCheck:
    name = f"{side}-padded batch"
    if traits.task == "text-classification" and traits.lacks_pad_id:
        reason = "without pad_token_id transformers classifies one row at a time"
        return PlannedCheck(name, "rows of several lengths", not_run=reason)
    rows = (length, max(length - length // 3, 1), max(length // 4, 1))
    return PlannedCheck(
        name,
        f"rows of {', '.join(map(str, rows))} tokens padded to {length}",
        (Run("one call", rows, (length,), side=side),),
        traits.mixing_note,
    )


def _with_padding_ids(length: int, traits: SubjectTraits) -> PlannedCheck:
    name, description = "padding ids among the tokens", "a row with pad_token_id inside, and one that ends with it"
    if traits.lacks_pad_id:
        return PlannedCheck(name, description, not_run="there is no pad_token_id")
    if length < 3:
        return PlannedCheck(name, description, not_run=f"max_length {traits.max_length} leaves no room for it")
    return PlannedCheck(
        name,
        description,
        (
            Run("inside", (length,), (length,), padding_ids=(length // 2,)),
            Run("at the end", (length,), (length,), padding_ids=(length - 1,)),
        ),
    )
