"""The largest magnitudes of cached keys and values by channel, from which the scales of an int8 cache are computed."""

from __future__ import annotations

import numpy as np

from doge_export.quantization.texts import Texts
from doge_export.runtime.decoders.decoder import Decoder

Ranges = list[tuple[np.ndarray, np.ndarray]]
"""Largest magnitudes of keys and of values, each float32 [Hkv, D], layer by layer."""


def cache_ranges(decoder: Decoder, texts: Texts) -> Ranges:
    """Return the largest magnitudes that the float32 model caches on these texts."""
    ranges: Ranges = []
    for ids in texts.rows:
        decoder.reset(1)
        decoder.forward(ids[None], None, 1)
        seen = [(_largest(key), _largest(value)) for key, value in decoder.cache_snapshot()]
        ranges = [
            (np.maximum(key, new_key), np.maximum(value, new_value))
            for (key, value), (new_key, new_value) in zip(ranges or seen, seen, strict=True)
        ]
    return ranges


def _largest(cache: np.ndarray) -> np.ndarray:
    """[B, Hkv, T, D] -> [Hkv, D]."""
    return np.abs(cache).max(axis=(0, 2))
