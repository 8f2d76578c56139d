"""Decoder of the `onnxruntime` target: a buffer of keys and one of values per layer, bound as past and as present.

onnxruntime writes new keys and values into the buffers themselves, so no cache is copied per token. Buffers are as long
as the export allows but cost memory only as they fill: the system hands out their pages on first use.

A step of one token binds nothing anew: every input, lengths included, is a buffer whose content changes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.graph_decoder import GraphDecoder
from doge_export.runtime.graph import running
from doge_export.runtime.prediction import Prediction, predictions
from doge_export.runtime.state import check_arrays


class InPlaceDecoder(GraphDecoder):
    """Decoder over caches of fixed capacity that are updated in place.

    Args:
        session: the graph.
        limits: limits of a sequence.

    Raises:
        DogeExportError: the graph was written by an older doge-export.
    """

    def __init__(self, session: onnxruntime.InferenceSession, limits: SequenceLimits) -> None:
        super().__init__(session, limits)
        if "past_length" not in self._shapes:
            raise DogeExportError("the graph is of an older doge-export, which this one does not run; export it again")
        self._layers = sum(name.startswith("past_key_values.") and name.endswith(".key") for name in self._shapes)
        self._score_width = self._shapes["past_scores"][1] if "past_scores" in self._shapes else 0
        self._takes_positions = "position_ids" in self._shapes
        self.reset()

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; the buffers are kept if the batch size stays."""
        self._progress.reset(batch_size)
        if not hasattr(self, "_scores") or len(self._scores) != batch_size:
            self._allocate(batch_size)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        logits = self._run(input_ids, attention_mask, num_logits_to_keep)
        return self._step_logits.copy() if logits is None else logits

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`; the logits of a step are read where onnxruntime wrote them."""
        logits = self._run(input_ids, attention_mask, 1)
        return predictions(self._step_logits if logits is None else logits)

    def _run(self, input_ids: Array, attention_mask: Array | None, num_logits_to_keep: int) -> Array | None:
        """Run as `forward` does; None for a step, whose logits the next step overwrites in `_step_logits`."""
        self._progress.check(input_ids)
        past, new = self.length, input_ids.shape[1]
        if self._limits.mixes_rows and past and new > 1 and self.batch_size > 1:
            raise DogeExportError(
                "a batch of an export with reference CDMoE routing must be read whole, then token by token, since its "
                "rows route one another; read it in one piece, or export with --cdmoe-routing per-token"
            )
        _, positions = self._progress.append(new, attention_mask)
        if new == 1:
            self._step(past, input_ids, positions)
            return None
        ids = np.ascontiguousarray(input_ids, dtype=np.int64)
        rows = [slice(None)] if past == 0 or self.batch_size == 1 else [slice(r, r + 1) for r in range(self.batch_size)]
        last = positions[:, -1]
        if len(rows) > 1 and last.max() >= self.chunkable_length and (last != last[0]).any():
            self._progress.rewind(past)
            raise DogeExportError(
                f"rows of different lengths cannot be read in pieces {self._why_whole}; "
                "read them in one piece, then token by token, or each for itself"
            )
        logits = [self._chunk(row, past, ids[row], positions[row], num_logits_to_keep) for row in rows]
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
        """Copy the (key, value) cache of every layer, each [B, Hkv, length, D]."""
        return [(k[:, :, : self.length].copy(), v[:, :, : self.length].copy()) for k, v in self._caches]

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`: by the graph's names, keys and values [1, Hkv, length, D], scores [1, Hs, 1, length]."""
        return {name: buffer[:, :, : self.length].copy() for name, buffer in self._buffers().items()} | {
            name: buffer[..., : self.length].copy() for name, buffer in self._score_buffers().items()
        }

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        caches, scores = self._buffers(), self._score_buffers()
        expected = {name: ((1, each.shape[1], length, each.shape[3]), each.dtype) for name, each in caches.items()}
        expected |= {name: ((1, each.shape[1], 1, length), each.dtype) for name, each in scores.items()}
        check_arrays(state, expected)
        self.reset()
        for name in caches:
            self._fill(name, state[name])
        for name, buffer in self._score_buffers().items():
            buffer[..., :length] = state[name]
        self._progress.append(length, None)

    def _fill(self, name: str, content: Array) -> None:
        """Write the beginning of an empty buffer of keys or values, [1, Hkv, length, D]."""
        self._buffers()[name][:, :, : content.shape[2]] = content

    def _buffers(self) -> dict[str, Array]:
        """Return the buffers of keys and values by the graph's names."""
        parts = ("key", "value")
        return {
            f"past_key_values.{layer}.{part}": buffer
            for layer, pair in enumerate(self._caches)
            for part, buffer in zip(parts, pair, strict=True)
        }

    def _score_buffers(self) -> dict[str, Array]:
        return {"past_scores": self._scores} if self._score_width else {}

    def _allocate(self, batch_size: int) -> None:
        shape = (batch_size, self._kv_heads, self.max_length, self._head_dim)
        dtype = self._cache_types["past_key_values.0.key"]
        self._caches = [(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(self._layers)]
        self._step_logits = np.zeros((batch_size, 1, self.vocab_size), np.float32)
        self._allocate_small(batch_size)
        self._binding = self._bind(slice(None), self._step_tokens, self._step_logits, self._step_scores)

    def _allocate_small(self, batch_size: int) -> None:
        self._scores = np.zeros((batch_size, self._score_width, 1, self.max_length), np.float32)
        self._step_tokens = _Tokens(np.zeros((batch_size, 1), np.int64), np.zeros((batch_size, 1), np.int64))
        self._step_scores = np.zeros((batch_size, self._score_width, 1, 1), np.float32)
        self._keep = np.zeros((), np.int64)

    def _bind(self, row: slice, tokens: _Tokens, logits: Array, new_scores: Array) -> onnxruntime.IOBinding:
        """Bind the inputs and outputs of a run of these rows."""
        binding = self._session.io_binding()
        inputs, outputs = self._small_inputs(row, tokens), {"logits": logits}
        if self._score_width:
            outputs["new_scores"] = new_scores
        for layer, caches in enumerate(self._caches):
            for part, cache in zip(("key", "value"), caches, strict=True):
                inputs[f"past_key_values.{layer}.{part}"] = outputs[f"present.{layer}.{part}"] = cache[row]
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def _small_inputs(self, row: slice, tokens: _Tokens) -> dict[str, Array]:
        """Return the inputs of a run besides keys and values, by name."""
        inputs = {"attention_mask": self._progress.mask[row], "num_logits_to_keep": self._keep, **tokens.inputs()}
        if not self._takes_positions:
            del inputs["position_ids"]
        if self._score_width:
            inputs["past_scores"] = self._scores[row]
        return inputs

    def _step_binding(self) -> onnxruntime.IOBinding:
        """Return what the next step of one token runs with."""
        return self._binding

    def _step(self, past: int, input_ids: Array, positions: Array) -> None:
        tokens = self._step_tokens
        tokens.ids[...] = input_ids
        tokens.positions[...] = positions
        tokens.advance(past)
        with running():
            self._session.run_with_iobinding(self._step_binding())
        self._scores[..., past] = self._step_scores[..., 0]

    def _chunk(self, row: slice, past: int, ids: Array, positions: Array, keep: int) -> Array:
        """Read several new tokens, of all rows of an empty cache at once or of one row behind its past.

        onnxruntime's attention kernel refuses a batch with a past. A row of a buffer is contiguous, so it runs as a
        batch of one.
        """
        batch, new = ids.shape
        self._keep[...] = keep
        tokens = _Tokens(ids, np.ascontiguousarray(positions))
        tokens.advance(past)
        logits = np.empty((batch, min(keep, new) or new, self.vocab_size), np.float32)
        scores = np.empty((batch, self._score_width, 1, new), np.float32)
        with running():
            self._session.run_with_iobinding(self._bind(row, tokens, logits, scores))
        self._scores[row, ..., past : past + new] = scores
        self._keep[...] = 0
        return logits


class _Tokens:
    """The new tokens of a run, ids and positions int64 [B, S], and the lengths in the forms that the graph takes."""

    def __init__(self, ids: Array, positions: Array) -> None:
        self.ids, self.positions = ids, positions
        self.past_length, self.total_length = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.last_key, self.total = np.zeros(len(ids), np.int32), np.zeros((), np.int32)

    def advance(self, past: int) -> None:
        """Set the lengths for a run behind `past` tokens."""
        total = past + self.ids.shape[1]
        self.past_length[0], self.total_length[0] = past, total
        self.last_key[:], self.total[()] = total - 1, total

    def inputs(self) -> dict[str, Array]:
        """Return the arrays by the graph's names of inputs."""
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "past_length": self.past_length,
            "total_length": self.total_length,
            "seqlens_k": self.last_key,
            "total_sequence_length": self.total,
        }
