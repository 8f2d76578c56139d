"""Decoders of graphs that take the caches as inputs and return them longer by the new tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.graph_decoder import GraphDecoder
from doge_export.runtime.graph import running
from doge_export.runtime.state import check_arrays


class GrowingDecoder(GraphDecoder):
    """Decoder of the `portable` target; it feeds the graph as Optimum, transformers.js and onnxruntime-genai do."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: SequenceLimits) -> None:
        super().__init__(session, limits)
        self._pasts = [name for name in self._shapes if name.startswith("past_key_values.")]
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._pasts)]
        self.reset()

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything."""
        extents = {name: (batch_size, self._shapes[name][1], 0, *self._shapes[name][3:]) for name in self._pasts}
        empty = (np.zeros(extent, self._cache_types[name]) for name, extent in extents.items())
        self._caches = [OrtValue.ortvalue_from_numpy(cache) for cache in empty]
        self._progress.reset(batch_size)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)
        # Copies: an array over the memory of an OrtValue does not keep alive what that one was made from.
        cut = (cache.numpy()[:, :, :length].copy() for cache in self._caches)
        self._caches = [OrtValue.ortvalue_from_numpy(cache) for cache in cut]

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        self._progress.check(input_ids)
        mask, positions = self._progress.append(input_ids.shape[1], attention_mask)
        feeds = {"input_ids": input_ids, "position_ids": positions, **self._masks(mask, num_logits_to_keep)}
        contiguous = {name: np.asarray(array, np.int64, order="C") for name, array in feeds.items()}
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in contiguous.items()}
        values |= zip(self._pasts, self._caches, strict=True)
        with running():
            logits, *self._caches = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy()

    def _masks(self, mask: Array, num_logits_to_keep: int) -> dict[str, Array]:
        """Return the inputs other than ids and positions; `mask` is that of the new tokens, without the past."""
        keep = np.array(num_logits_to_keep, np.int64)
        return {"attention_mask": self._progress.mask[:, : self.length], "num_logits_to_keep": keep}

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`: arrays by the graph's names, each [1, Hkv, length, D]."""
        return {name: cache.numpy().copy() for name, cache in zip(self._pasts, self._caches, strict=True)}

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        extents = {name: (1, self._shapes[name][1], length, *self._shapes[name][3:]) for name in self._pasts}
        check_arrays(state, {name: (extents[name], self._cache_types[name]) for name in self._pasts})
        self.reset()
        self._caches = [OrtValue.ortvalue_from_numpy(np.ascontiguousarray(state[name])) for name in self._pasts]
        self._progress.append(length, None)

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copy the (key, value) cache of every layer, each [B, Hkv, length, D]."""
        arrays = dict(zip(self._pasts, (cache.numpy().copy() for cache in self._caches), strict=True))
        layers = range(sum(name.endswith(".key") for name in self._pasts))
        return [(arrays[f"past_key_values.{i}.key"], arrays[f"past_key_values.{i}.value"]) for i in layers]


class GrowingScoresDecoder(GrowingDecoder):
    """Decoder of the `canonical` target, whose graph is the traced one; it exists to validate that graph.

    The graph takes and returns the scores of the cached tokens beside keys and values, and these scores mark padding in
    the past. So its attention mask covers the new tokens alone. It computes the logits of all new tokens.
    """

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        return super().forward(input_ids, attention_mask)[:, -num_logits_to_keep:]

    def _masks(self, mask: Array, num_logits_to_keep: int) -> dict[str, Array]:
        return {"attention_mask": mask}
