"""Decoder of the `onnxruntime` target: one buffer a layer for keys and one for values, bound as past and as present.

onnxruntime writes new keys and values into the buffers themselves, so no cache is copied per token. Buffers are as long
as the export allows but cost memory only as they fill: the system hands out their pages on first use.

A step of one token reuses all its bindings but two: the scores of the cached tokens, whose number grows, and the place
right behind them where the new scores go.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.runtime.decoder import Array, GraphDecoder, Limits

CPU = ("cpu", 0)


class InPlaceDecoder(GraphDecoder):
    """See `runtime.decoder.Decoder`."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: Limits) -> None:
        super().__init__(session, limits)
        self._layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in self._shapes)
        self._score_width = self._shapes["past_scores"][2]
        self._mixes_rows = limits.mixes_rows
        self.reset()

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; buffers of the same batch size are used again."""
        if not hasattr(self, "_scores") or self._scores.shape[1] != batch_size:
            self._allocate(batch_size)
        self._progress.reset(batch_size)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        self._progress.check(input_ids)
        past, new = self.length, input_ids.shape[1]
        if self._mixes_rows and past and new > 1 and self.batch_size > 1:
            raise DogeExportError(
                "a batch of an export with reference CDMoE routing must be read whole, then token by token, since its "
                "rows route one another; read it in one piece, or export with --cdmoe-routing per-token"
            )
        mask, positions = self._progress.append(new, attention_mask)
        if new == 1:
            return self._step(past, input_ids, mask, positions)
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        rows = [slice(None)] if past == 0 or self.batch_size == 1 else [slice(r, r + 1) for r in range(self.batch_size)]
        last = positions[:, -1]
        if len(rows) > 1 and last.max() >= self.chunkable_length and (last != last[0]).any():
            self._progress.rewind(past)
            raise DogeExportError(
                f"rows of different lengths cannot be read in pieces {self._why_whole}; "
                "read them in one piece, then token by token, or each for itself"
            )
        logits = [self._chunk(row, past, ids[row], mask[row], positions[row], num_logits_to_keep) for row in rows]
        return np.concatenate(logits) if len(logits) > 1 else logits[0]

    @property
    def _why_whole(self) -> str:
        if self.chunkable_length == 0:
            return "in this generation, where a token may see no key and attends to whatever is read with it"
        return (
            f"beyond the trained length of {self.chunkable_length} tokens, since scaled RoPE turns all of them by the "
            "longest"
        )

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copies of the (key, value) cache of every layer, each [B, Hkv, length, D]."""
        return [(k[:, :, : self.length].copy(), v[:, :, : self.length].copy()) for k, v in self._caches]

    def _allocate(self, batch_size: int) -> None:
        shape = (batch_size, self._kv_heads, self.max_length, self._head_dim)
        self._caches = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for _ in range(self._layers)]
        self._scores = np.zeros((self.max_length, batch_size, self._score_width), np.float32)
        self._step_inputs = {
            name: np.zeros((batch_size, 1), np.int64) for name in ("input_ids", "attention_mask", "position_ids")
        }
        self._step_logits = np.zeros((batch_size, 1, self.vocab_size), np.float32)
        self._keep = np.zeros((), np.int64)
        self._binding = self._bind(slice(None), self._step_inputs, self._step_logits)

    def _bind(self, row: slice, inputs: dict[str, Array], logits: Array) -> onnxruntime.IOBinding:
        """Everything but the scores: token inputs, logits, and the caches of the rows."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *CPU, array.dtype, array.shape, array.ctypes.data)
        binding.bind_input("num_logits_to_keep", *CPU, np.int64, (), self._keep.ctypes.data)
        binding.bind_output("logits", *CPU, np.float32, logits.shape, logits.ctypes.data)
        for layer, caches in enumerate(self._caches):
            for part, cache in zip(("key", "value"), caches, strict=True):
                view = cache[row]
                where = (*CPU, np.float32, view.shape, view.ctypes.data)
                binding.bind_input(f"past_key_values.{layer}.{part}", *where)
                binding.bind_output(f"present.{layer}.{part}", *where)
        return binding

    def _run(self, binding: onnxruntime.IOBinding, scores: Array, past: int, new: int) -> None:
        """Bind the scores [max_length, B, L * Hs] of past tokens, and the place of the new ones behind them."""
        rest = scores.shape[1:]
        stride = scores.strides[0]
        start = scores.ctypes.data
        binding.bind_input("past_scores", *CPU, np.float32, (past, *rest), start)
        binding.bind_output("new_scores", *CPU, np.float32, (new, *rest), start + past * stride)
        self._session.run_with_iobinding(binding)

    def _step(self, past: int, input_ids: Array, mask: Array, positions: Array) -> Array:
        inputs = self._step_inputs
        inputs["input_ids"][...] = input_ids
        inputs["attention_mask"][...] = mask
        inputs["position_ids"][...] = positions
        self._run(self._binding, self._scores, past, 1)
        return self._step_logits.copy()

    def _chunk(self, row: slice, past: int, ids: Array, mask: Array, positions: Array, keep: int) -> Array:
        """Several new tokens: all rows of an empty cache at once, or one row behind its past.

        The attention kernel refuses a batch with a past. A row of a buffer is contiguous: it is run as a batch of one.
        """
        batch, new = ids.shape
        self._keep[...] = keep
        logits = np.empty((batch, min(keep, new) or new, self.vocab_size), np.float32)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        alone = batch != self.batch_size
        scores = np.ascontiguousarray(self._scores[: past + new, row]) if alone else self._scores
        self._run(self._bind(row, inputs, logits), scores, past, new)
        if alone:
            self._scores[past : past + new, row] = scores[past:]
        self._keep[...] = 0
        return logits
