"""Decoder of portable graphs with a bounded cache: memory and time of a token do not depend on the length.

The graph takes keys, values and scores of at most keep_window_size slots and returns their successors, so the decoder
hands them round and counts tokens; it holds neither a mask nor anything else of the length of the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.graph_decoder import GraphDecoder
from doge_export.runtime.decoders.marks import Mark, Marks, no_way_back
from doge_export.runtime.decoders.progress import Lengths
from doge_export.runtime.graph import running
from doge_export.runtime.state import check_arrays

SCORES = "past_scores"
WINDOW = "keep_window_size"
NEG = np.finfo(np.float32).min
"""Score of padding."""


class BoundedDecoder(GraphDecoder):
    """Decoder over slots. It is set back to a length up to which no key was dropped, or to one that was marked."""

    _record_type = Lengths
    _progress: Lengths

    def __init__(
        self, session: onnxruntime.InferenceSession, limits: SequenceLimits, window: int | None = None
    ) -> None:
        super().__init__(session, limits)
        self.window = window
        self._settings = {} if window is None else {WINDOW: _held(np.array([window]))}
        self._keeps = [_held(np.array(number)) for number in (0, 1)]
        caches = [name for name in self._shapes if name.startswith("past_key_values.")]
        self._pasts = [SCORES, *caches]
        self._outputs = ["logits", "present_scores", *(name.replace("past_key_values", "present") for name in caches)]
        self._marks: Marks[tuple[OrtValue, ...]] = Marks()
        self.reset()

    def fork(self) -> Self:
        """See `Decoder.fork`."""
        return type(self)(self._session, self._limits, self.window)

    @property
    def takes_window(self) -> bool:
        """True if the graph has its window as a value that a run may replace."""
        return WINDOW in {value.name for value in self._session.get_overridable_initializers()}

    def with_window(self, window: int) -> Self:
        """Return a fork with a smaller window; the graph must take it."""
        return type(self)(self._session, self._limits, window)

    @property
    def slots(self) -> int:
        """Keys that each layer and head now holds."""
        return self._caches[0].shape()[2]

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything."""
        extents = [(batch_size, self._shapes[name][1], 0, *self._shapes[name][3:]) for name in self._pasts]
        types = [self._cache_types[name] for name in self._pasts]
        empty = (np.zeros(extent, kind) for extent, kind in zip(extents, types, strict=True))
        self._caches = tuple(map(OrtValue.ortvalue_from_numpy, empty))
        self._marks.clear()
        self._progress.reset(batch_size)

    def mark(self) -> None:
        """See `Decoder.mark`. It costs no time, since runs leave the slots as they are, and the memory of the slots."""
        self._marks.add(Mark(self.length, self._progress.tokens, self._holds_all, self._caches))

    def recallable(self, length: int) -> int:
        """See `Decoder.recallable`."""
        return length if length == self.length or self._holds_all else self._marks.recallable(length)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on.

        Raises:
            DogeExportError: keys of the first `length` tokens were dropped, and no state of that length is kept.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache has read {self.length} tokens")
        if length == self.length:
            return
        mark = self._marks.of(length)
        if mark is None and length and not self._holds_all:
            raise no_way_back(self.length, length)
        self._caches = self._caches if mark is None else mark.content
        if mark is not None and mark.length == length:
            tokens = mark.tokens
        else:
            # Copies: an array over the memory of an OrtValue does not keep alive what that one was made from.
            cut = (cache.numpy()[:, :, :length].copy() for cache in self._caches)
            self._caches = tuple(map(OrtValue.ortvalue_from_numpy, cut))
            tokens = (self._caches[0].numpy()[:, 0] != NEG).sum(axis=1, keepdims=True, dtype=np.int64)
        self._progress.restore(length, tokens)
        self._marks.forget_behind(length)

    @property
    def _holds_all(self) -> bool:
        """True if no key has been dropped yet."""
        return self.slots == self.length

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`. An interrupted run leaves cache and lengths as they were."""
        self._progress.check(input_ids)
        mask, positions, tokens = self._progress.after(input_ids.shape[1], attention_mask)
        values = {
            "input_ids": _held(input_ids),
            "position_ids": _held(positions),
            "attention_mask": _held(mask),
            "num_logits_to_keep": self._keeps[num_logits_to_keep]
            if 0 <= num_logits_to_keep < len(self._keeps)
            else _held(np.array(num_logits_to_keep)),
            **self._settings,
        }
        values |= zip(self._pasts, self._caches, strict=True)
        with running():
            logits, *caches = self._session.run_with_ort_values(self._outputs, values)
        self._caches = tuple(caches)
        self._progress.restore(self.length + input_ids.shape[1], tokens)
        return logits.numpy()

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`: scores and slots by the graph's names."""
        return {name: cache.numpy().copy() for name, cache in zip(self._pasts, self._caches, strict=True)}

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        slots = state[SCORES].shape[2] if SCORES in state and state[SCORES].ndim > 2 else length
        if slots > length:
            raise DogeExportError(f"the state has {slots} slots for {length} tokens: it is of another session")
        extents = {name: (1, self._shapes[name][1], slots, *self._shapes[name][3:]) for name in self._pasts}
        check_arrays(state, {name: (extents[name], self._cache_types[name]) for name in self._pasts})
        self.reset()
        self._caches = tuple(OrtValue.ortvalue_from_numpy(np.ascontiguousarray(state[name])) for name in self._pasts)
        self._progress.restore(length, np.array([[length]], np.int64))
        self.mark()

    @property
    def cache_bytes(self) -> int | None:
        """See `Decoder.cache_bytes`."""
        return sum(cache.numpy().nbytes for cache in self._caches)

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copy the (key, value) slots of every layer, each [B, Hkv, slots, D]."""
        arrays = dict(zip(self._pasts, (cache.numpy().copy() for cache in self._caches), strict=True))
        layers = range(len(arrays) // 2)
        return [(arrays[f"past_key_values.{i}.key"], arrays[f"past_key_values.{i}.value"]) for i in layers]


def _held(array: Array) -> OrtValue:
    """Return integers as onnxruntime takes them."""
    return OrtValue.ortvalue_from_numpy(np.asarray(array, np.int64, order="C"))
