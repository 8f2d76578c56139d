"""Decoder of the `onnxruntime` target on a GPU: keys, values and a step's logits stay in its memory.

Not run on a GPU yet: tests run it with the CPU as the device, which takes the same calls.
"""

from __future__ import annotations

import functools
from typing import Any, Self

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from doge_export.runtime.decoders.best_token import BestToken
from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.in_place import InPlaceDecoder, _Tokens
from doge_export.runtime.device import CPU, Device
from doge_export.runtime.prediction import Prediction, check_finite


class _StepLogits:
    """Logits of one step: those of all rows come to the host, or the best of each row does, if somebody asks."""

    def __init__(self, value: OrtValue, find_best: BestToken) -> None:
        self._value, self._find_best = value, find_best

    @functools.cached_property
    def on_host(self) -> Array:
        """float32 [B, V]."""
        return self._value.numpy()[:, -1].copy()

    @functools.cached_property
    def best(self) -> tuple[Array, Array]:
        """Ids and logits, each [B]."""
        return self._find_best(self._value)


class DevicePrediction(Prediction):
    """Prediction of a row whose logits lie on a device; a greedy choice leaves them there."""

    def __init__(self, step: _StepLogits, row: int) -> None:
        self._step, self._row = step, row

    def logits(self) -> Array:
        """See `Prediction.logits`."""
        return self._step.on_host[self._row]

    def argmax(self) -> int:
        """See `Prediction.argmax`; which of several equal logits is taken is the device's choice."""
        tokens, logits = self._step.best
        check_finite(float(logits[self._row]))
        return int(tokens[self._row])


class OnDeviceDecoder(InPlaceDecoder):
    """Decoder over caches on a device that are updated in place.

    Masks, positions and the scores that select keys are of the host, some kilobytes a token.

    Args:
        session: the graph.
        limits: limits of a sequence.
        device: where the caches are.
        find_best: finds the best tokens there; None to make it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        limits: SequenceLimits,
        device: Device = CPU,
        find_best: BestToken | None = None,
    ) -> None:
        self._device = device
        options = session.get_provider_options()
        self._find_best = find_best or BestToken([(name, options[name]) for name in session.get_providers()])
        super().__init__(session, limits)

    @property
    def computes_by(self) -> str:
        """See `Decoder.computes_by`."""
        return f"onnxruntime on {self._device[0]}:{self._device[1]}"

    def fork(self) -> Self:
        """See `Decoder.fork`."""
        return type(self)(self._session, self._limits, self._device, self._find_best)

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        logits = self._run(input_ids, attention_mask, num_logits_to_keep)
        return self._step_value.numpy().copy() if logits is None else logits

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`; the logits of a step stay on the device until somebody wants to see them."""
        logits = self._run(input_ids, attention_mask, 1)
        if logits is not None:
            return [Prediction(row) for row in logits[:, -1]]
        step = _StepLogits(self._step_value, self._find_best)
        return [DevicePrediction(step, row) for row in range(self.batch_size)]

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """See `Decoder.cache_snapshot`."""
        arrays = [buffer.copy() for buffer in self._buffers().values()]
        return [
            (k[:, :, : self.length], v[:, :, : self.length]) for k, v in zip(arrays[::2], arrays[1::2], strict=True)
        ]

    def _fill(self, name: str, content: Array) -> None:
        value = self._values[name]  # a view of it is one of a copy, where the device is no CPU
        whole = np.zeros(value.shape(), self._cache_type)
        whole[:, :, : content.shape[2]] = content
        value.update_inplace(whole)

    def _buffers(self) -> dict[str, Array]:
        """Return copies, or views where the device is the CPU."""
        return {name: value.numpy() for name, value in self._values.items()}

    @property
    def _cache_type(self) -> Any:
        return self._cache_types["past_key_values.0.key"]

    def _allocate(self, batch_size: int) -> None:
        zeros = np.zeros((batch_size, self._kv_heads, self.max_length, self._head_dim), self._cache_type)
        names = [f"past_key_values.{layer}.{part}" for layer in range(self._layers) for part in ("key", "value")]
        # Copies: a value of the CPU would share the array.
        self._values = {name: OrtValue.ortvalue_from_numpy(zeros.copy(), *self._device) for name in names}
        self._step_value = OrtValue.ortvalue_from_shape_and_type(
            [batch_size, 1, self.vocab_size], np.float32, *self._device
        )
        self._allocate_small(batch_size)
        self._binding = self._bind(slice(None), self._step_tokens, None, self._step_scores)

    def _bind(self, row: slice, tokens: _Tokens, logits: Array | None, new_scores: Array) -> onnxruntime.IOBinding:
        """Bind the inputs and outputs of a run of these rows; `logits` is None for those of a step, which stay."""
        binding = self._session.io_binding()
        self._bind_small(binding, row, tokens)
        for name, value in self._values.items():
            shape = value.shape()
            start, end, _ = row.indices(shape[0])
            size = np.dtype(self._cache_type).itemsize * int(np.prod(shape[1:]))
            where = (*self._device, self._cache_type, (end - start, *shape[1:]), value.data_ptr() + start * size)
            binding.bind_input(name, *where)
            binding.bind_output(name.replace("past_key_values", "present"), *where)
        outputs = {"new_scores": new_scores} if self._score_width else {}
        if logits is None:
            binding.bind_ortvalue_output("logits", self._step_value)
        else:
            outputs["logits"] = logits
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def _bind_small(self, binding: onnxruntime.IOBinding, row: slice, tokens: _Tokens) -> None:
        for name, array in self._small_inputs(row, tokens).items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _step_binding(self) -> onnxruntime.IOBinding:
        """Bind the small inputs anew: onnxruntime copies them to the device when they are bound, not when it runs."""
        self._bind_small(self._binding, slice(None), self._step_tokens)
        return self._binding
