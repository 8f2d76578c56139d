"""Decoder of an engine: `runtime.decoder.Decoder`, so that sessions, validation and benchmarks need not know.

Rows come padded on the left and are handed on with their real tokens first: an engine's caches hold no padding, each
row has its own length, and what a shorter row's last run wrote behind it is written over by its next tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.progress import Array, CountingDecoder, Limits
from doge_export.runtime.engine.open_engine import open_engine
from doge_export.runtime.engine.runner import Runner
from doge_export.runtime.prediction import Candidates, Prediction, predictions

ROUNDING = 1e-6
"""Of a logit: what its division by a temperature may add or take, and more."""


class EngineDecoder(CountingDecoder):
    """See `runtime.decoder.Decoder`."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        sidecar = runner.sidecar
        super().__init__(limits, int(sidecar.outputs["logits"].shape[-1]))
        self._runner = runner
        self.max_batch, self._max_logits = sidecar.max_batch, sidecar.max_logits
        self._layers = sum(cache.past.endswith(".key") for cache in sidecar.caches)

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; what the caches hold is never read, since lengths start at 0."""
        if batch_size > self.max_batch:
            raise DogeExportError(
                f"{batch_size} rows are more than this engine takes at a time ({self.max_batch}): give fewer, or build "
                f"it again with --max-batch {batch_size}"
            )
        self._progress.reset(batch_size)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`. A prompt longer than the engine reads at a time is read in pieces."""
        new = input_ids.shape[1]
        keep = min(num_logits_to_keep, new) or new
        wanted = []
        for rows, start in self._pieces(input_ids, attention_mask):
            first = max(new - keep - start, 0)
            size = rows.ids.shape[1]
            # A run gives at most max_logits; the same tokens read again write the same keys to the same places.
            for column in range(first, size, self._max_logits):
                self._run(rows, rows.places[:, column : column + self._max_logits])
                wanted.append(self._runner.buffers.logits())
            if first >= size:  # none of its logits is wanted, and the engine gives one at least
                self._run(rows, rows.places[:, -1:])
        return wanted[0] if len(wanted) == 1 else np.concatenate(wanted, axis=1)

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`. Of the logits only the best are copied to the host, until others are asked for."""
        for rows, _ in self._pieces(input_ids, attention_mask):
            self._run(rows, rows.places[:, -1:])
        best = self._runner.buffers.best()
        if best is None:
            return predictions(self._runner.buffers.logits())
        everything = _AllLogits(self._runner)
        return [
            BestTokens(tokens[-1], logits[-1], functools.partial(everything.row, row))
            for row, (tokens, logits) in enumerate(zip(*best, strict=True))
        ]

    def _pieces(self, input_ids: Array, attention_mask: Array | None) -> Iterator[tuple[_Packed, int]]:
        """What the engine reads at a time, counted in before it runs, and the column that it begins at."""
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
            mask, _ = self._progress.append(ids.shape[1], None if attention_mask is None else attention_mask[:, piece])
            yield _pack(ids, mask.astype(bool), past), start

    def _run(self, rows: _Packed, places: Array) -> None:
        batch, new = rows.ids.shape
        self._runner.run(
            (batch, new, places.shape[1]),
            input_ids=rows.ids,
            past_lengths=rows.past,
            position_ids=rows.positions,
            logits_tokens=places,
        )

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copies of the (key, value) cache of every layer, each float32 [B, Hkv, length, D], padded on the left."""
        return [(self._cache(f"{layer}.key"), self._cache(f"{layer}.value")) for layer in range(self._layers)]

    def _cache(self, name: str) -> Array:
        stored = self._runner.buffers.cache(f"past_key_values.{name}", self.batch_size)
        cache = np.zeros_like(stored[:, :, : self.length])
        for row, tokens in enumerate(self._progress.tokens[:, 0].tolist()):
            cache[row, :, self.length - tokens :] = stored[row, :, :tokens]
        return cache

    @property
    def scratch_bytes(self) -> int:
        """Device memory of the engine's layers, beside caches, inputs and outputs."""
        return self._runner.scratch_bytes

    @property
    def recorded(self) -> bool:
        """Whether steps are launched from a recorded CUDA graph by now."""
        return self._runner.recorded

    def close(self) -> None:
        """Gives the GPU's memory back."""
        self._runner.close()


class _AllLogits:
    """Those of a run's last tokens, copied to the host once, when the first row asks."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._run = runner, runner.runs
        self._copied: Array | None = None

    def row(self, index: int) -> Array:
        """float32 [V]. Raises RuntimeError where the engine has run again since."""
        if self._copied is None:
            if self._runner.runs != self._run:
                raise RuntimeError("the engine has run again, and its logits are those of another token")
            self._copied = self._runner.buffers.logits()[:, -1]
        return self._copied[index]


class BestTokens(Prediction):
    """The best tokens of a row, [K] in any order, and a way to the logits float32 [V] of all."""

    def __init__(self, tokens: Array, logits: Array, everything: Callable[[], Array]) -> None:
        order = np.argsort(tokens)
        self._tokens, self._best, self._everything = tokens[order].astype(np.int64), logits[order], everything

    def logits(self) -> Array:
        """float32 [V]."""
        return self._everything()

    def argmax(self) -> int:
        """The lowest id among those of the highest logit; where K is 1, any of them."""
        if len(self._best) > 1 and not self._best.min() < self._best.max():  # others may be as good; or not a number
            return int(self.logits().argmax())
        return int(self._tokens[self._best.argmax()])

    def candidates(self, count: int) -> Candidates:
        """See `Prediction.candidates`."""
        if 0 < count < len(self._best):
            edge = np.partition(self._best, -count)[-count]
            if self._best.min() < edge - ROUNDING * abs(edge):  # what is not here is no better than the worst that is
                return self._tokens, self._best
        logits = self.logits()
        return np.arange(len(logits)), logits


class _Packed(NamedTuple):
    """New tokens as the engine takes them: int32 ids, positions and places [B, S], past [B].

    `places[b, j]` is where the token of column j went; for padding any place.
    """

    ids: Array
    positions: Array
    places: Array
    past: Array


def _pack(ids: Array, real: Array, past: Array) -> _Packed:
    """Moves the real tokens of each row, bool [B, S], to its front. past: tokens that each row has already, [B]."""
    counted = real.cumsum(axis=1)
    places = np.maximum(counted - 1, 0)
    if not real.all():
        order = np.argsort(~real, axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
    last = np.maximum(counted[:, -1:] - 1, 0)
    positions = past[:, None] + np.minimum(np.arange(ids.shape[1]), last)
    return _Packed(*(array.astype(np.int32) for array in (ids, positions, places, past)))


def open_engine_decoder(folder: Path, manifest: dict[str, Any]) -> EngineDecoder:
    """The decoder of a folder that `doge-export trt` wrote. Raises as `open_engine`."""
    return EngineDecoder(Runner(open_engine(folder)), Limits.of(manifest))
