"""Random decoders of every composition, and how their graphs are lowered and run."""

from __future__ import annotations

import numpy as np
from compositions import EVERY, FULLY_MASKING, MIXING

from doge_export.runtime.decoders.growing import GrowingDecoder, GrowingScoresDecoder
from doge_export.runtime.decoders.in_place import InPlaceDecoder
from doge_export.targets import Traits

LENGTH, VOCABULARY = 24, 96
DECODERS = {"onnxruntime": InPlaceDecoder, "portable": GrowingDecoder, "canonical": GrowingScoresDecoder}
CASES = [(name, target) for name in EVERY for target in DECODERS if target != "canonical" or name not in FULLY_MASKING]


def traits(name):
    """The kernel rotates every second composition, tables of angles rotate the others."""
    static = list(EVERY).index(name) % 2 == 0 and EVERY[name].get("rotates_keys", True)
    return Traits(fully_masked_rows=name in FULLY_MASKING | MIXING, static_rope=static, max_length=32)


def run(decoder, ids, mask=None, chunks=None):
    """Logits [B, S, V] read in pieces."""
    decoder.reset(len(ids))
    parts, start = [], 0
    for size in chunks or [ids.shape[1]]:
        piece = slice(start, start + size)
        parts.append(decoder.forward(ids[:, piece], None if mask is None else mask[:, piece]))
        start += size
    return np.concatenate(parts, axis=1)
