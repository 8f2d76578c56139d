"""The plan of a validation: the token sequences of each check, the pieces they are fed in, and what costs too much.

Each check isolates one mechanism: the first four stay within keep_window_size and the trained length, so that a graph
without key selection fails only the check of key selection.
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
"""Multiply-adds that a run may cost; about ten seconds of two CPU cores."""

MOST_LOGITS = 1.5e8
"""Logits that a run may produce: 600 MB in float32, for the reference and again for the subject."""

MEDIUM, LONG = 48, 96
"""Lengths in tokens, of a padded row and of a prompt."""

STEPS, STEPS_WHEN_LARGE = 32, 16
"""Tokens fed or generated one at a time; the second for models of more than LARGE multiply-adds a token."""

LARGE = 1e8

MARGIN = 64
"""Number of positions before `PlannedCheck.beyond` that are compared too."""


@dataclasses.dataclass(frozen=True)
class SubjectTraits:
    """The properties of an exported folder and its model that decide which checks can run, and on what.

    Attributes:
        max_length: number of tokens that the export holds.
        vocab_size: number of token ids.
        keep_window_size: number of keys up to which none is masked by rank; 0 if there is no such number.
        trained_length: length beyond which RoPE may scale: max_position_embeddings, or longrope's original one.
        num_hidden_layers: number of layers.
        attention_size: num_attention_heads * head_dim.
        multiplications_per_token: multiply-adds of a token outside attention.
        reserved_ids: special tokens, which are never drawn.
        pad_id: id that fills padding.
        mixes_tokens: True for reference CDMoE routing, where rows and padding influence one another.
        looks_ahead: True if a token whose keys are all masked attends to all tokens read with it.
        ratio: True if a share of the keys is masked.
        task: task of the export.
        lacks_pad_id: True if the config has no pad_token_id.
        max_batch: number of rows that the subject takes at a time; None for any number.
        tolerance: bounds of the checks.
    """

    max_length: int
    vocab_size: int
    keep_window_size: int
    trained_length: int
    num_hidden_layers: int
    attention_size: int
    multiplications_per_token: int
    reserved_ids: frozenset[int]
    pad_id: int
    mixes_tokens: bool
    looks_ahead: bool = False
    ratio: bool = False
    task: Task = "text-generation"
    lacks_pad_id: bool = False
    max_batch: int | None = None
    tolerance: Tolerance = FLOAT32

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_length: int, cdmoe_routing: str | None) -> Self:
        """Collect the traits of a folder that was exported from `checkpoint` with this max_length and CDMoE routing."""
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
        """Number of tokens to feed one at a time; each of them costs a pass over all weights."""
        return STEPS if self.multiplications_per_token <= LARGE else STEPS_WHEN_LARGE

    @property
    def pieces_note(self) -> str:
        """Note to the reader on checks that feed tokens in pieces; empty if there is nothing to note."""
        if not self.looks_ahead:
            return ""
        return (
            "which keys this model leaves out depends on what is read together, in the reference too: compared with "
            "the reference fed in the same pieces, which is not what one call gives"
        )

    @property
    def mixing_note(self) -> str:
        """Note to the reader on padded batches; empty if there is nothing to note."""
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
    """A batch to feed.

    Attributes:
        label: name of the run in reports.
        rows: number of tokens in each row; padding fills a row up to sum(chunks).
        chunks: sizes of the pieces that the batch is fed in.
        side: side of the padding.
        padding_ids: positions of tokens whose id is the padding id, although the mask counts them as tokens.
    """

    label: str
    rows: tuple[int, ...]
    chunks: tuple[int, ...]
    side: Side = "left"
    padding_ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of tokens in a row, padding included."""
        return sum(self.chunks)

    def batch(self, traits: SubjectTraits, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw input_ids and attention_mask, int64 [B, S] each.

        No token occurs twice in a row if the vocabulary suffices: in layer 0 a key's score depends on its token alone,
        so equal tokens would tie.
        """
        random = np.random.default_rng([seed, *self.rows, *self.chunks])
        usable = np.setdiff1d(np.arange(traits.vocab_size), sorted(traits.reserved_ids))
        ids = np.full((len(self.rows), self.length), traits.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, real in enumerate(self.rows):
            tokens = slice(self.length - real, None) if self.side == "left" else slice(real)
            ids[row, tokens] = random.choice(usable, real, replace=real > len(usable))
            mask[row, tokens] = 1
        ids[:, self.padding_ids] = traits.pad_id
        return ids, mask


@dataclasses.dataclass(frozen=True)
class PlannedCheck:
    """A check to run, or the reason why it is not run.

    Attributes:
        name: name of the check.
        description: what is fed, for reports.
        runs: batches to feed.
        note: note to the reader of the report.
        beyond: number of tokens of a row after which the checked mechanism acts; positions more than MARGIN before it
            are not compared.
        not_run: why the check is not run; empty if it is.
    """

    name: str
    description: str
    runs: tuple[Run, ...] = ()
    note: str = ""
    beyond: int = 0
    not_run: str = ""


def plan_checks(traits: SubjectTraits) -> list[PlannedCheck]:
    """Plan the six checks of a language model that compare logits, in order."""
    # Reference routing spreads a tie to the whole call, so shorter calls leave out fewer positions.
    long = LONG // 2 if traits.mixes_tokens else LONG
    simple = min(traits.max_length, traits.keep_window_size or traits.max_length, traits.trained_length)
    checks = [
        _prefill(min(simple, long)),
        _chunked(min(simple, long), traits),
        _decode(min(simple, traits.steps), traits),
        _padded(min(simple, MEDIUM), traits),
        _window(traits),
        _beyond_training(traits),
    ]
    return checks if traits.max_batch is None else [_for_engine(check, traits) for check in checks]


def _prefill(length: int) -> PlannedCheck:
    return PlannedCheck("one-shot prefill", f"{length} tokens in one call", (Run("one call", (length,), (length,)),))


def _chunked(length: int, traits: SubjectTraits) -> PlannedCheck:
    half = length // 2
    middle = (length - half - 2) // 2
    chunks = (half, 1, middle, 1, length - half - middle - 2) if middle > 0 else (1,) * length
    return PlannedCheck(
        "chunked prefill",
        f"{length} tokens through the cache in pieces of {', '.join(map(str, chunks))}",
        (Run("in pieces", (length,), chunks),),
        traits.pieces_note,
    )


def _decode(length: int, traits: SubjectTraits) -> PlannedCheck:
    return PlannedCheck(
        "cached decode",
        f"{length} tokens, one a step, teacher-forced",
        (Run("step by step", (length,), (1,) * length),),
        traits.pieces_note,
    )


def _padded(length: int, traits: SubjectTraits) -> PlannedCheck:
    rows = (length, max(length - length // 3, 1), max(length // 4, 1))
    steps = min(3, length - 1)
    runs = [Run("one call", rows, (length,))]
    if steps and rows[-1] > steps:
        runs.append(Run("prefill and steps", rows, (length - steps, *(1,) * steps)))
    return PlannedCheck(
        _PADDED,
        f"rows of {', '.join(map(str, rows))} tokens padded to {length}",
        tuple(runs),
        traits.mixing_note,
    )


def _window(traits: SubjectTraits) -> PlannedCheck:
    name, window = "beyond keep_window_size", traits.keep_window_size
    description = f"key selection by score, keep_window_size {window}"
    if window <= 0:
        every = "there is no keep_window_size: " + (
            "every check leaves out keys" if traits.looks_ahead else "every key is kept"
        )
        return PlannedCheck(name, description if window else "key selection by score", not_run=every)
    if traits.max_length <= window:
        reason = f"max_length {traits.max_length} does not exceed keep_window_size {window}: nothing is ever left out"
        return PlannedCheck(name, description, not_run=reason)
    length = min(traits.max_length, window + (32 if window <= 512 else 16))
    if window < traits.trained_length:
        length = min(length, traits.trained_length)  # scaled RoPE has a check of its own
    rows: tuple[int, ...] = (length,)
    if window <= 512 and not traits.mixes_tokens and length - window >= 4:
        rows = (length, length - (length - window) // 4)  # padding must not take a place in the window
    prefill = max(window - 4, 1)
    runs = (
        Run("one call", rows, (length,)),
        Run("step by step", rows[:1], (prefill, *(1,) * (length - prefill))),
    )
    return _affordable(PlannedCheck(name, f"{description}: {length} tokens", runs, beyond=window), traits)


def _beyond_training(traits: SubjectTraits) -> PlannedCheck:
    name, trained = "beyond trained length", traits.trained_length
    description = f"positions past the trained length {trained}"
    if traits.max_length <= trained:
        reason = f"max_length {traits.max_length} does not exceed the trained length {trained}"
        return PlannedCheck(name, description, not_run=reason)
    length = min(traits.max_length, trained + 16)
    past = length - trained
    burst = (past + 1) // 3
    runs = (
        Run("one call", (length,), (length,)),
        # Exactly `trained` tokens first: they show a rotary embedding that still has the frequencies of the run above.
        Run("prefill and steps", (length,), tuple(n for n in (trained, burst, *(1,) * (past - burst)) if n)),
    )
    return _affordable(PlannedCheck(name, f"{description}: {length} tokens", runs, beyond=trained), traits)


def _for_engine(check: PlannedCheck, traits: SubjectTraits) -> PlannedCheck:
    """Cut a check's runs to the rows that an engine takes; leave out padded batches that the engine refuses.

    An engine moves padding to the right, where reference CDMoE routing would mix it with the tokens.
    """
    assert traits.max_batch is not None
    runs = tuple(dataclasses.replace(run, rows=run.rows[: traits.max_batch]) for run in check.runs)
    reason = ""
    if check.name == _PADDED and traits.max_batch == 1:
        reason = "the engine takes one row at a time; --max-batch 3 would have this checked"
    elif check.name == _PADDED and traits.mixes_tokens:
        reason = "under reference CDMoE routing an engine refuses padding, which would be routed with the tokens"
    return dataclasses.replace(check, runs=() if reason else runs, not_run=reason or check.not_run)


def _affordable(check: PlannedCheck, traits: SubjectTraits) -> PlannedCheck:
    """Return the check, without its runs if one of them costs too much or needs more distinct ids than there are."""
    for run in check.runs:
        tokens = run.length * len(run.rows)
        attention = 2 * traits.num_hidden_layers * traits.attention_size * run.length * tokens
        work = traits.multiplications_per_token * tokens + attention
        logits = tokens * traits.vocab_size
        distinct = traits.vocab_size - len(traits.reserved_ids)
        reason = ""
        if work > MOST_MULTIPLICATIONS:
            reason = (
                f"{tokens} tokens cost {work:.1e} multiply-adds a run, more than the {MOST_MULTIPLICATIONS:.1e} spent"
            )
        elif logits > MOST_LOGITS:
            reason = f"{tokens} tokens give {logits:.1e} logits a run, more than the {MOST_LOGITS:.1e} held"
        elif run.length > traits.keep_window_size > 0 and run.length > distinct:
            reason = f"{run.length} tokens need as many distinct ids, the vocabulary has {distinct}: scores would tie"
        if reason:
            return dataclasses.replace(check, runs=(), not_run=reason)
    return check


def _multiplications_per_token(architecture: Architecture) -> int:
    """Count a token's multiply-adds outside attention: all of every matrix, and the rows that it reads of a table."""
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
