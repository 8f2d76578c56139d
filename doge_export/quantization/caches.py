"""The largest magnitudes of cached keys and values by channel, from which the scales of an int8 cache are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.quantization.observed import observed
from doge_export.quantization.quantize_slots import slots_of
from doge_export.quantization.texts import Texts
from doge_export.runtime.decoders.decoder import Decoder
from doge_export.targets.lowering import constant

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


def slot_ranges(file: Path, texts: Texts) -> Ranges:
    """Return the largest magnitudes that a float32 graph with bounded caches appends to them, dropped ones included.

    Keys are rotated by their position, and positions of such a folder are far beyond those of texts: a channel counts
    with the length of the pair that it is rotated in, which no position changes.
    """
    with observed(file, _add_outputs) as (graph, largest):
        seen = [np.stack(parts) for parts in zip(*(graph.run(ids, largest) for ids in texts.rows), strict=True)]
    both = [each.max(axis=0) for each in seen]
    return list(zip(both[::2], both[1::2], strict=True))


def _add_outputs(model: ir.Model) -> list[str]:
    """Add an output [Hkv, D] for each cache, keys and values of a layer by turns; return their names."""
    graph, names = model.graph, []
    for slots in sorted(slots_of(graph), key=lambda slots: (slots.layer, slots.part)):
        tape = Tape()
        appended = slots.append.outputs[0]
        magnitude = _pair_lengths(tape, graph, appended) if slots.part == "key" else tape.op("Abs", [appended])
        axes = constant(graph, np.array([0, 2]))
        largest = tape.op("ReduceMax", [magnitude, axes], {"keepdims": 0})
        sizes = list(slots.cache.shape or ())
        largest.name, largest.dtype = f"largest.{slots.layer}.{slots.part}", ir.DataType.FLOAT
        largest.shape = ir.Shape([sizes[1], sizes[3]])
        graph.extend(tape.nodes)
        graph.outputs.append(largest)
        names.append(largest.name)
    return names


def _pair_lengths(tape: Tape, graph: ir.Graph, keys: ir.Value) -> ir.Value:
    """Return the length of the pair of each channel of keys [B, Hkv, S, D], which are (d, d + D / 2)."""
    two = tape.op("Mul", [keys, keys])
    first, second = tape.op_multi_out("Split", [two], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    length = tape.op("Sqrt", [tape.op("Add", [first, second])])
    return tape.op("Concat", [length, length], {"axis": -1})


def _largest(cache: np.ndarray) -> np.ndarray:
    """[B, Hkv, T, D] -> [Hkv, D]."""
    return np.abs(cache).max(axis=(0, 2))
