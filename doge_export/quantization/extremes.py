"""The largest values that a 16-bit graph would store, measured in float32: float16 ends at 65504."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from doge_export.quantization.observed import observed
from doge_export.quantization.texts import Texts
from doge_export.targets.half.extremes import Extreme, watch
from doge_export.targets.half.prepare import prepare


def extremes_of(file: Path, texts: Texts) -> list[Extreme]:
    """Measure every value that a float16 form of a graph would compute and store in 16 bits.

    Args:
        file: the float32 graph.
        texts: the texts to run.

    Returns:
        The largest magnitude of each value, in the graph's order.
    """

    def prepared(model: ir.Model) -> Mapping[str, tuple[str, str]]:
        prepare(model)
        return watch(model)

    with observed(file, prepared) as (graph, watched):
        largest_seen = np.zeros(len(watched), np.float32)
        for ids in texts.rows:
            largest_seen = np.maximum(largest_seen, np.array(graph.run(ids, [*watched])))
    return [
        Extreme(operator, value, float(magnitude))
        for (operator, value), magnitude in zip(watched.values(), largest_seen, strict=True)
    ]
