"""The decoder of an engine, with the interface that sessions, validation and benchmarks use for any decoder.

Rows come padded on the left and are passed on with their real tokens first: an engine's caches hold no padding, and
each row has its own length. What a run writes behind a shorter row is overwritten by the row's next tokens.

While its caller takes the best token every time, the decoder looks ahead: it starts the step of that token before the
caller has asked for it. If the caller then gives another token, the step is forgotten, and its keys are overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array, Decoder, SequenceLimits
from doge_export.runtime.engine.runner import Runner
from doge_export.runtime.prediction import BestTokens, Prediction, predictions
from doge_export.runtime.state import check_arrays

PATIENCE = 4
"""Best tokens that a caller must take in a row before the decoder looks ahead: one who samples takes another one soon,
and then waits for a step that is of no use."""


class EngineDecoder(Decoder):
    """Decoder over a `Runner`; see `Decoder`."""

    backend = "engine"

    @property
    def computes_by(self) -> str:
        """See `Decoder.computes_by`."""
        return "TensorRT"

    def __init__(self, runner: Runner, limits: SequenceLimits) -> None:
        sidecar = runner.sidecar
        super().__init__(limits, int(sidecar.outputs["logits"].shape[-1]))
        self._runner = runner
        self._most_rows, self._max_logits = sidecar.max_batch, sidecar.max_logits
        self._layers = sum(cache.past.endswith(".key") for cache in sidecar.caches)
        self._best_next: tuple[Array, Array] | None = None  # tokens [B] that the device deems best, lengths behind them
        self._streak = 0

    @property
    def max_batch(self) -> int:
        """Rows that the engine takes at a time."""
        return self._most_rows

    def fork(self) -> Self:
        """See `Decoder.fork`: contexts, a stream and buffers of its own on the same engine."""
        return type(self)(self._runner.fork(), self._limits)

    def reset(self, batch_size: int = 1) -> None:
        """Forget all tokens. Caches need not be cleared: lengths start at 0, and nothing beyond them is read."""
        if batch_size > self._most_rows:
            raise DogeExportError(
                f"{batch_size} rows are more than this engine takes at a time ({self._most_rows}): give fewer, or "
                f"build it again with --max-batch {batch_size}"
            )
        self._progress.reset(batch_size)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`. A prompt that is longer than one run reads is read in pieces."""
        new = input_ids.shape[1]
        keep = min(num_logits_to_keep, new) or new
        wanted = []
        for rows, start in self._pieces(input_ids, attention_mask):
            first = max(new - keep - start, 0)
            size = rows.ids.shape[1]
            columns = range(first, size, self._max_logits)  # a run gives at most max_logits
            again = self._before_again(rows) if len(columns) > 1 else None
            for column in columns:
                if column > first and again is not None:
                    again()
                self._run(rows, rows.places[:, column : column + self._max_logits])
                wanted.append(self._runner.buffers.logits())
            if first >= size:  # no logits are wanted, but a run gives at least one
                self._run(rows, rows.places[:, -1:])
        return wanted[0] if len(wanted) == 1 else np.concatenate(wanted, axis=1)

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`. Only the best logits are copied to the host, unless others are asked for."""
        if input_ids.shape[1] == 1 and attention_mask is None:
            rows = self._step(input_ids)
        else:
            for rows, _ in self._pieces(input_ids, attention_mask):
                self._run(rows, rows.places[:, -1:])
        best = self._runner.buffers.best()
        if best is None:
            return predictions(self._runner.buffers.logits())
        self._best_next = best[0][:, -1, 0].copy(), self._progress.tokens[:, 0].copy()
        everything = _AllLogits(self._runner, functools.partial(self._again, rows))
        return [
            BestTokens(tokens[-1], logits[-1], functools.partial(everything.row, row))
            for row, (tokens, logits) in enumerate(zip(*best, strict=True))
        ]

    def _pieces(self, input_ids: Array, attention_mask: Array | None) -> Iterator[tuple[Packed, int]]:
        """Yield the pieces that one run reads, each counted as read, and their first columns."""
        self._progress.check(input_ids)
        if self._limits.mixes_rows and attention_mask is not None and not np.all(attention_mask):
            raise DogeExportError(
                "a padded batch of an engine with reference CDMoE routing would be routed otherwise than by PyTorch: "
                "give prompts of equal length or one at a time, or build it with --cdmoe-routing per-token"
            )
        longest = self._runner.buffers.longest
        for start in range(0, input_ids.shape[1], longest):
            piece = slice(start, start + longest)
            ids, past = input_ids[:, piece], self._progress.tokens[:, 0]
            mask = self._append(ids.shape[1], None if attention_mask is None else attention_mask[:, piece])
            yield _pack(ids, mask.astype(bool), past), start

    def _append(self, new: int, attention_mask: Array | None) -> Array:
        """Count tokens as read; return their mask, int64 [B, new]."""
        return self._progress.append(new, attention_mask)[0]

    def _before_again(self, rows: Packed) -> Callable[[], None] | None:
        """Return what makes the caches ready to read the same tokens a second time; None where they are.

        They write the same keys to the same places.
        """
        return None

    @property
    def _may_look_ahead(self) -> bool:
        """True if the next step can be forgotten when it turns out to be of another token."""
        return self.length < self.max_length

    def _step(self, input_ids: Array) -> Packed:
        """Run a step of decoding, and start the one that is likely to come next."""
        ((rows, _),) = self._pieces(input_ids, None)
        is_best = self._best_next is not None and all(map(np.array_equal, self._best_next, (rows.ids[:, 0], rows.past)))
        self._streak = self._streak + 1 if is_best else 0
        if is_best and self._runner.is_ahead:
            self._runner.advance()
        else:
            self._runner.start((len(rows.ids), 1, 1), **_inputs(rows, rows.places))
        if self._streak >= PATIENCE and self._may_look_ahead:
            ahead = rows._replace(positions=rows.positions + 1, past=rows.past + 1)
            self._runner.follow(**_inputs(ahead, rows.places))
        self._runner.wait()
        return rows

    def _again(self, rows: Packed) -> None:
        """Run a step again whose logits a later one has overwritten; who asks for all logits needs no look ahead."""
        if self._runner.is_ahead:
            self._run(rows, rows.places[:, -1:])
        self._streak = 0

    def _run(self, rows: Packed, places: Array) -> None:
        self._runner.run((*rows.ids.shape, places.shape[1]), **_inputs(rows, places))

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Return a copy of every layer's (key, value) cache, each float32 [B, Hkv, length, D], padded on the left."""
        return [(self._cache(f"{layer}.key"), self._cache(f"{layer}.value")) for layer in range(self._layers)]

    def _cache(self, name: str) -> Array:
        stored = self._runner.buffers.cache(f"past_key_values.{name}", self.batch_size)
        cache = np.zeros_like(stored[:, :, : self.length])
        for row, tokens in enumerate(self._progress.tokens[:, 0].tolist()):
            cache[row, :, self.length - tokens :] = stored[row, :, :tokens]
        return cache

    @property
    def state_form(self) -> str | None:
        """See `Decoder.state_form`."""
        return "engine"

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`: by the engine's names, the first slots of row 0; those of bfloat16 as uint16."""
        live = min(self.length, self._slots)
        return {name: each[:, :, :live].copy() for name, each in self._runner.buffers.caches(1).items()}

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        caches, live = self._runner.buffers.caches(1), min(length, self._slots)
        expected = {name: ((*each.shape[:2], live, *each.shape[3:]), each.dtype) for name, each in caches.items()}
        check_arrays(state, expected)
        self.reset()
        for name, each in caches.items():
            each[:, :, :live] = state[name]
        self._runner.buffers.write_caches(caches)
        self._best_next = None
        self._append(length, None)

    @property
    def _slots(self) -> int:
        """Keys that the caches can hold of each layer and head."""
        return self._runner.sidecar.caches[0].shape[2]

    @property
    def scratch_bytes(self) -> int:
        """Bytes of device memory of the engine's layers, without caches, inputs and outputs."""
        return self._runner.scratch_bytes

    @property
    def recorded(self) -> bool:
        """True if steps are launched from a recorded CUDA graph by now."""
        return self._runner.recorded

    def close(self) -> None:
        """Free the GPU's memory."""
        self._runner.close()


class _AllLogits:
    """All logits of a run's last tokens, copied to the host once, when the first row is asked for.

    Args:
        runner: that has run.
        restore: called before the copy; makes the device hold the logits, if it holds later ones.
    """

    def __init__(self, runner: Runner, restore: Callable[[], None]) -> None:
        self._runner, self._run, self._restore = runner, runner.runs, restore
        self._copied: Array | None = None

    def row(self, index: int) -> Array:
        """Return the logits of a row, float32 [V].

        Raises:
            RuntimeError: the engine has run again since.
        """
        if self._copied is None:
            if self._runner.runs != self._run:
                raise RuntimeError("the engine has run again, and its logits are those of another token")
            self._restore()
            self._copied = self._runner.buffers.logits()[:, -1]
        return self._copied[index]


class Packed(NamedTuple):
    """New tokens as the engine takes them, all int32.

    Attributes:
        ids: [B, S], real tokens first.
        positions: [B, S], in the text.
        places: [B, S], the column that the token of each column moved to; any for padding.
        past: [B], number of tokens that were read before.
        new: [B], number of these tokens that are no padding.
    """

    ids: Array
    positions: Array
    places: Array
    past: Array
    new: Array


def _inputs(rows: Packed, places: Array) -> dict[str, Array]:
    """Return the engine's inputs by name; `places` are those of the tokens whose logits are wanted."""
    return {
        "input_ids": rows.ids,
        "past_lengths": rows.past,
        "new_lengths": rows.new,
        "position_ids": rows.positions,
        "logits_tokens": places,
    }


def _pack(ids: Array, real: Array, past: Array) -> Packed:
    """Move the real tokens of each row to its front.

    Args:
        ids: [B, S].
        real: bool [B, S], False for padding.
        past: [B], number of tokens that were read before.
    """
    counted = real.cumsum(axis=1)
    places = np.maximum(counted - 1, 0)
    if not real.all():
        order = np.argsort(~real, axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
    last = np.maximum(counted[:, -1:] - 1, 0)
    positions = past[:, None] + np.minimum(np.arange(ids.shape[1]), last)
    return Packed(*(array.astype(np.int32) for array in (ids, positions, places, past, counted[:, -1])))
