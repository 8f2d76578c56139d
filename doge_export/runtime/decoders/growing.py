"""Decoder of the `portable` target: caches go in and come out a little longer, as with any loader of such graphs."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from doge_export.runtime.decoders.graph_decoder import GraphDecoder
from doge_export.runtime.decoders.progress import Array, Limits


class PortableDecoder(GraphDecoder):
    """See `runtime.decoder.Decoder`."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: Limits) -> None:
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
        cut = (np.ascontiguousarray(cache.numpy()[:, :, :length]) for cache in self._caches)
        self._caches = [OrtValue.ortvalue_from_numpy(cache) for cache in cut]

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        self._progress.check(input_ids)
        mask, positions = self._progress.append(input_ids.shape[1], attention_mask)
        feeds = {"input_ids": input_ids, "position_ids": positions, **self._masks(mask, num_logits_to_keep)}
        contiguous = {name: np.asarray(array, np.int64, order="C") for name, array in feeds.items()}
        values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in contiguous.items()}
        values |= zip(self._pasts, self._caches, strict=True)
        logits, *self._caches = self._session.run_with_ort_values(self._outputs, values)
        return logits.numpy()

    def _masks(self, mask: Array, num_logits_to_keep: int) -> dict[str, Array]:
        """What is fed beside ids and positions; `mask` is that of the new tokens, here all of them are asked for."""
        keep = np.array(num_logits_to_keep, np.int64)
        return {"attention_mask": self._progress.mask[:, : self.length], "num_logits_to_keep": keep}

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copies of the (key, value) cache of every layer, each [B, Hkv, length, D]."""
        arrays = dict(zip(self._pasts, (cache.numpy().copy() for cache in self._caches), strict=True))
        layers = range(sum(name.endswith(".key") for name in self._pasts))
        return [(arrays[f"past_key_values.{i}.key"], arrays[f"past_key_values.{i}.value"]) for i in layers]
