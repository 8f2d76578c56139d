"""Which token sequences each check feeds, how they are cut into pieces, and what is too dear to feed.

Each check isolates one mechanism: the first four stay within keep_window_size and the trained length, so that a graph
without key selection fails only the check that is about it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

MOST_MULTIPLICATIONS = 3.5e11
"""Multiply-adds one run may cost; about ten seconds of two CPU cores."""

MOST_LOGITS = 1.5e8
"""Logits one run may produce; 600 MB in float32, for each side."""

MEDIUM, LONG = 48, 96
"""Tokens of a padded row, of a prompt."""

STEPS, STEPS_WHEN_LARGE = 32, 16
"""Tokens fed or generated one at a time; the second for models of more than LARGE multiply-adds a token."""

LARGE = 1e8

MARGIN = 64
"""Positions before `beyond` that are compared too; those before them only lead up to it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the plan must know of the exported folder and of the model."""

    max_length: int
    vocab_size: int
    keep_window_size: int
    trained_length: int  # beyond it RoPE may scale: max_position_embeddings, or longrope's original one
    num_hidden_layers: int
    attention_size: int  # num_attention_heads * head_dim
    multiplications_per_token: int
    reserved_ids: frozenset[int]  # special tokens, never drawn
    pad_id: int
    mixes_tokens: bool  # reference CDMoE routing: rows and padding reach each other

    @property
    def steps(self) -> int:
        """How many tokens to feed one at a time: each costs a large model a pass over all its weights."""
        return STEPS if self.multiplications_per_token <= LARGE else STEPS_WHEN_LARGE


@dataclasses.dataclass(frozen=True)
class Run:
    """One batch: `rows[i]` real tokens in row i, left padded to sum(chunks), fed in pieces of `chunks` tokens."""

    label: str
    rows: tuple[int, ...]
    chunks: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens per row, padding included."""
        return sum(self.chunks)

    def batch(self, limits: Limits, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """input_ids and attention_mask, int64 [B, S]; within a row no token occurs twice where the ids suffice.

        In layer 0 the dynamic-mask score depends on the token alone: a token used twice would be a tied score.
        """
        random = np.random.default_rng([seed, *self.rows, *self.chunks])
        usable = np.setdiff1d(np.arange(limits.vocab_size), sorted(limits.reserved_ids))
        ids = np.full((len(self.rows), self.length), limits.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, real in enumerate(self.rows):
            ids[row, self.length - real :] = random.choice(usable, real, replace=real > len(usable))
            mask[row, self.length - real :] = 1
        return ids, mask


@dataclasses.dataclass(frozen=True)
class PlannedCheck:
    """A check to run, or the reason (`not_run`) why it is not.

    beyond: the check is about the tokens of a row behind this many; positions long before them are not compared.
    """

    name: str
    description: str
    runs: tuple[Run, ...] = ()
    note: str = ""
    beyond: int = 0
    not_run: str = ""


def plan(limits: Limits) -> list[PlannedCheck]:
    """The six checks that compare logits, in order."""
    # Reference routing spreads a tie to the whole call, and ties come by the token: fewer tokens, fewer ties.
    long = LONG // 2 if limits.mixes_tokens else LONG
    simple = min(limits.max_length, limits.keep_window_size or limits.max_length, limits.trained_length)
    return [
        _prefill(min(simple, long)),
        _chunked(min(simple, long)),
        _decode(min(simple, limits.steps)),
        _padded(min(simple, MEDIUM), limits),
        _window(limits),
        _beyond_training(limits),
    ]


def _prefill(length: int) -> PlannedCheck:
    return PlannedCheck("one-shot prefill", f"{length} tokens in one call", (Run("one call", (length,), (length,)),))


def _chunked(length: int) -> PlannedCheck:
    half = length // 2
    middle = (length - half - 2) // 2
    chunks = (half, 1, middle, 1, length - half - middle - 2) if middle > 0 else (1,) * length
    return PlannedCheck(
        "chunked prefill",
        f"{length} tokens through the cache in pieces of {', '.join(map(str, chunks))}",
        (Run("in pieces", (length,), chunks),),
    )


def _decode(length: int) -> PlannedCheck:
    return PlannedCheck(
        "cached decode",
        f"{length} tokens, one a step, teacher-forced",
        (Run("step by step", (length,), (1,) * length),),
    )


def _padded(length: int, limits: Limits) -> PlannedCheck:
    rows = (length, max(length - length // 3, 1), max(length // 4, 1))
    steps = min(3, length - 1)
    runs = [Run("one call", rows, (length,))]
    if steps and rows[-1] > steps:
        runs.append(Run("prefill and steps", rows, (length - steps, *(1,) * steps)))
    note = ""
    if limits.mixes_tokens:
        note = (
            "reference CDMoE routing mixes rows and padding, in transformers too: compared with transformers on the "
            "same padded batch, which is not what the rows give alone"
        )
    return PlannedCheck(
        "left-padded batch", f"rows of {', '.join(map(str, rows))} tokens padded to {length}", tuple(runs), note
    )


def _window(limits: Limits) -> PlannedCheck:
    name, window = "beyond keep_window_size", limits.keep_window_size
    description = f"key selection by score, keep_window_size {window}"
    if window <= 0:
        return PlannedCheck(name, description, not_run="keep_window_size 0 keeps every key")
    if limits.max_length <= window:
        reason = f"max_length {limits.max_length} does not exceed keep_window_size {window}: nothing is ever left out"
        return PlannedCheck(name, description, not_run=reason)
    length = min(limits.max_length, window + (32 if window <= 512 else 16))
    if window < limits.trained_length:
        length = min(length, limits.trained_length)  # one mechanism at a time
    rows: tuple[int, ...] = (length,)
    if window <= 512 and not limits.mixes_tokens and length - window >= 4:
        rows = (length, length - (length - window) // 4)  # padding must not take a place in the window
    prefill = max(window - 4, 1)
    runs = (
        Run("one call", rows, (length,)),
        Run("step by step", rows[:1], (prefill, *(1,) * (length - prefill))),
    )
    return _affordable(PlannedCheck(name, f"{description}: {length} tokens", runs, beyond=window), limits)


def _beyond_training(limits: Limits) -> PlannedCheck:
    name, trained = "beyond trained length", limits.trained_length
    description = f"positions past the trained length {trained}"
    if limits.max_length <= trained:
        reason = f"max_length {limits.max_length} does not exceed the trained length {trained}"
        return PlannedCheck(name, description, not_run=reason)
    length = min(limits.max_length, trained + 16)
    past = length - trained
    burst = (past + 1) // 3
    runs = (
        Run("one call", (length,), (length,)),
        # Exactly `trained` tokens first: a rotary embedding that remembers the run above gives itself away here.
        Run("prefill and steps", (length,), tuple(n for n in (trained, burst, *(1,) * (past - burst)) if n)),
    )
    return _affordable(PlannedCheck(name, f"{description}: {length} tokens", runs, beyond=trained), limits)


def _affordable(check: PlannedCheck, limits: Limits) -> PlannedCheck:
    """The check itself, or without its runs where one of them costs too much or has too few distinct ids."""
    for run in check.runs:
        tokens = run.length * len(run.rows)
        attention = 2 * limits.num_hidden_layers * limits.attention_size * run.length * tokens
        work = limits.multiplications_per_token * tokens + attention
        logits = tokens * limits.vocab_size
        distinct = limits.vocab_size - len(limits.reserved_ids)
        reason = ""
        if work > MOST_MULTIPLICATIONS:
            reason = (
                f"{tokens} tokens cost {work:.1e} multiply-adds a run, more than the {MOST_MULTIPLICATIONS:.1e} spent"
            )
        elif logits > MOST_LOGITS:
            reason = f"{tokens} tokens give {logits:.1e} logits a run, more than the {MOST_LOGITS:.1e} held"
        elif run.length > limits.keep_window_size > 0 and run.length > distinct:
            reason = f"{run.length} tokens need as many distinct ids, the vocabulary has {distinct}: scores would tie"
        if reason:
            return dataclasses.replace(check, runs=(), not_run=reason)
    return check
