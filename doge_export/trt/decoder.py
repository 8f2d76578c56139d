"""Decoder of an engine: `runtime.decoder.Decoder`, so that sessions, validation and benchmarks need not know.

Rows come padded on the left and are handed on with their real tokens first: an engine's caches hold no padding, each
row has its own length, and what a shorter row's last run wrote behind it is written over by its next tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.decoder import Array, Limits, Progress
from doge_export.trt.engine import open_engine
from doge_export.trt.runner import Runner


class EngineDecoder:
    """See `runtime.decoder.Decoder`."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self._runner, self._limits = runner, limits
        sidecar = runner.sidecar
        self.max_length, self.chunkable_length = limits.max_length, limits.chunkable_length
        self.max_batch, self._max_logits = sidecar.max_batch, sidecar.max_logits
        self.vocab_size = int(sidecar.outputs["logits"].shape[-1])
        self._layers = sum(cache.past.endswith(".key") for cache in sidecar.caches)
        self._progress = Progress(self.max_length, self.vocab_size)

    @property
    def batch_size(self) -> int:
        """Rows now in the cache."""
        return self._progress.batch_size

    @property
    def length(self) -> int:
        """Tokens a row now has in the cache, padding included."""
        return self._progress.length

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; what the caches hold is never read, since lengths start at 0."""
        if batch_size > self.max_batch:
            raise DogeExportError(
                f"{batch_size} rows are more than this engine takes at a time ({self.max_batch}): give fewer, or build "
                f"it again with --max-batch {batch_size}"
            )
        self._progress.reset(batch_size)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`. A prompt longer than the engine reads at a time is read in pieces."""
        self._progress.check(input_ids)
        new = input_ids.shape[1]
        if self._limits.mixes_rows and attention_mask is not None and not np.all(attention_mask):
            raise DogeExportError(
                "a padded batch of an engine with reference CDMoE routing would be routed otherwise than by PyTorch: "
                "give prompts of equal length or one at a time, or build it with --cdmoe-routing per-token"
            )
        keep = min(num_logits_to_keep, new) or new
        longest = self._runner.buffers.longest
        pieces = []
        for start in range(0, new, longest):
            end = min(start + longest, new)
            mask = None if attention_mask is None else attention_mask[:, start:end]
            pieces.append(self._piece(input_ids[:, start:end], mask, max(start, new - keep) - start))
        wanted = [piece for piece in pieces if piece.shape[1]]
        return wanted[0] if len(wanted) == 1 else np.concatenate(wanted, axis=1)

    def _piece(self, ids: Array, attention_mask: Array | None, first: int) -> Array:
        """Reads tokens [B, S]; logits of those from column `first` on, [B, S - first, V]."""
        new = ids.shape[1]
        past = self._progress.tokens[:, 0]
        mask, _ = self._progress.append(new, attention_mask)
        rows = _pack(ids, mask.astype(bool), past)
        if first >= new:  # no logits are wanted, and the engine gives one at least
            self._run(rows, rows.places[:, -1:])
            return np.empty((len(ids), 0, self.vocab_size), np.float32)
        # A run gives at most max_logits; the same tokens read again write the same keys to the same places.
        spans = range(first, new, self._max_logits)
        parts = [self._run(rows, rows.places[:, start : start + self._max_logits]) for start in spans]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _run(self, rows: _Packed, places: Array) -> Array:
        batch, new = rows.ids.shape
        return self._runner.run(
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


class _Packed:
    """New tokens as the engine takes them: int32 ids, positions and places [B, S], past [B].

    `places[b, j]` is where the token of column j went; for padding any place.
    """

    def __init__(self, ids: Array, positions: Array, places: Array, past: Array) -> None:
        self.ids, self.positions, self.places, self.past = ids, positions, places, past


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
