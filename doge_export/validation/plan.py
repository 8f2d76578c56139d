"""Which token sequences each check feeds, how they are cut into pieces, and what is too dear to feed.

Each check isolates one mechanism: the first four stay within keep_window_size and the trained length, so that a graph
without key selection fails only the check that is about it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from doge_export.checkpoint.architecture import Architecture, Task
from doge_export.checkpoint.naming import CLASSIFIER, EMBEDDING, expected_tensors
from doge_export.validation.tolerance import FLOAT32, Tolerance

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint

Side = Literal["left", "right"]

_PADDED = "left-padded batch"

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
    keep_window_size: int  # up to this many keys none is left out by rank; 0 where there is no such number
    trained_length: int  # beyond it RoPE may scale: max_position_embeddings, or longrope's original one
    num_hidden_layers: int
    attention_size: int  # num_attention_heads * head_dim
    multiplications_per_token: int
    reserved_ids: frozenset[int]  # special tokens, never drawn
    pad_id: int
    mixes_tokens: bool  # reference CDMoE routing: rows and padding reach each other
    looks_ahead: bool = False  # a token that may see no key attends to all that is read with it
    ratio: bool = False  # a share of the keys is left out
    task: Task = "text-generation"
    lacks_pad_id: bool = False  # the config has no pad_token_id
    max_batch: int | None = None  # rows that the subject takes at a time; None for any number
    tolerance: Tolerance = FLOAT32

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_length: int, cdmoe_routing: str | None) -> Self:
        """Those of a folder with this max_length and routing of experts."""
        architecture = checkpoint.architecture
        special = [checkpoint.config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
        flat = [item for entry in special for item in (entry if isinstance(entry, list) else [entry])]
        pad = architecture.pad_token_id
        moe, ratio = architecture.moe, architecture.ratio_mask
        return cls(
            max_length=max_length,
            vocab_size=architecture.vocab_size,
            keep_window_size=ratio.keep_window_size if ratio else architecture.keep_window_size,
            trained_length=architecture.trained_length or architecture.max_position_embeddings,
            num_hidden_layers=architecture.num_hidden_layers,
            attention_size=architecture.num_attention_heads * architecture.head_dim,
            multiplications_per_token=_multiplications_per_token(architecture),
            reserved_ids=frozenset(item for item in flat if isinstance(item, int)),
            pad_id=0 if pad is None else pad,
            mixes_tokens=moe is not None and moe.mixes_tokens and cdmoe_routing == "reference",
            looks_ahead=architecture.may_fully_mask_rows,
            ratio=ratio is not None,
            task=architecture.task,
            lacks_pad_id=pad is None,
        )

    @property
    def steps(self) -> int:
        """How many tokens to feed one at a time: each costs a large model a pass over all its weights."""
        return STEPS if self.multiplications_per_token <= LARGE else STEPS_WHEN_LARGE

    @property
    def pieces_note(self) -> str:
        """What a reader must know of tokens that are fed in pieces."""
        if not self.looks_ahead:
            return ""
        return (
            "which keys this model leaves out depends on what is read together, in the reference too: compared with "
            "the reference fed in the same pieces, which is not what one call gives"
        )

    @property
    def mixing_note(self) -> str:
        """What a reader must know of padded batches."""
        if self.mixes_tokens:
            return (
                "reference CDMoE routing mixes rows and padding, in the reference too: compared with it on the same "
                "padded batch, which is not what the rows give alone"
            )
        if self.ratio:
            return (
                "padding is ranked with the keys, in the reference too: compared with it on the same padded batch, "
                "which is not what the rows give alone"
            )
        return ""


@dataclasses.dataclass(frozen=True)
class Run:
    """One batch: `rows[i]` real tokens in row i, padded to sum(chunks), fed in pieces of `chunks` tokens.

    side: of the padding. padding_ids: positions whose token is the padding id, though they count as tokens.
    """

    label: str
    rows: tuple[int, ...]
    chunks: tuple[int, ...]
    side: Side = "left"
    padding_ids: tuple[int, ...] = ()

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
            tokens = slice(self.length - real, None) if self.side == "left" else slice(real)
            ids[row, tokens] = random.choice(usable, real, replace=real > len(usable))
            mask[row, tokens] = 1
        ids[:, self.padding_ids] = limits.pad_id
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
    checks = [
        _prefill(min(simple, long)),
        _chunked(min(simple, long), limits),
        _decode(min(simple, limits.steps), limits),
        _padded(min(simple, MEDIUM), limits),
        _window(limits),
        _beyond_training(limits),
    ]
    return checks if limits.max_batch is None else [_for_engine(check, limits) for check in checks]


def _prefill(length: int) -> PlannedCheck:
    return PlannedCheck("one-shot prefill", f"{length} tokens in one call", (Run("one call", (length,), (length,)),))


def _chunked(length: int, limits: Limits) -> PlannedCheck:
    half = length // 2
    middle = (length - half - 2) // 2
    chunks = (half, 1, middle, 1, length - half - middle - 2) if middle > 0 else (1,) * length
    return PlannedCheck(
        "chunked prefill",
        f"{length} tokens through the cache in pieces of {', '.join(map(str, chunks))}",
        (Run("in pieces", (length,), chunks),),
        limits.pieces_note,
    )


def _decode(length: int, limits: Limits) -> PlannedCheck:
    return PlannedCheck(
        "cached decode",
        f"{length} tokens, one a step, teacher-forced",
        (Run("step by step", (length,), (1,) * length),),
        limits.pieces_note,
    )


def _padded(length: int, limits: Limits) -> PlannedCheck:
    rows = (length, max(length - length // 3, 1), max(length // 4, 1))
    steps = min(3, length - 1)
    runs = [Run("one call", rows, (length,))]
    if steps and rows[-1] > steps:
        runs.append(Run("prefill and steps", rows, (length - steps, *(1,) * steps)))
    return PlannedCheck(
        _PADDED,
        f"rows of {', '.join(map(str, rows))} tokens padded to {length}",
        tuple(runs),
        limits.mixing_note,
    )


def _window(limits: Limits) -> PlannedCheck:
    name, window = "beyond keep_window_size", limits.keep_window_size
    description = f"key selection by score, keep_window_size {window}"
    if window <= 0:
        every = "there is no keep_window_size: " + (
            "every check leaves out keys" if limits.looks_ahead else "every key is kept"
        )
        return PlannedCheck(name, description if window else "key selection by score", not_run=every)
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


def _for_engine(check: PlannedCheck, limits: Limits) -> PlannedCheck:
    """The check with as many rows as an engine takes; padding it moves to the right, where experts may mix it."""
    assert limits.max_batch is not None
    runs = tuple(dataclasses.replace(run, rows=run.rows[: limits.max_batch]) for run in check.runs)
    reason = ""
    if check.name == _PADDED and limits.max_batch == 1:
        reason = "the engine takes one row at a time; --max-batch 3 would have this checked"
    elif check.name == _PADDED and limits.mixes_tokens:
        reason = "under reference CDMoE routing an engine refuses padding, which would be routed with the tokens"
    return dataclasses.replace(check, runs=() if reason else runs, not_run=reason or check.not_run)


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


def _multiplications_per_token(architecture: Architecture) -> int:
    """Multiply-adds of one token outside attention: every matrix once, and of the tables what a token reads."""
    looked_up = (EMBEDDING, CLASSIFIER, "_embed.weight", ".table.weight")
    shapes = expected_tensors(architecture)
    matrices = sum(
        math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and not name.endswith(looked_up)
    )
    if architecture.task == "text-generation" and architecture.tie_word_embeddings:
        matrices += architecture.vocab_size * architecture.hidden_size
    moe = architecture.moe
    routed = 2 * moe.num_heads * moe.num_experts_per_tok if moe else 0
    return matrices + routed * architecture.hidden_size * architecture.num_hidden_layers
