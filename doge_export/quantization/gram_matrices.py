"""Gram matrices X^T X of the inputs of linear layers, summed over the tokens of calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.quantization.observed import observed
from doge_export.quantization.texts import Texts
from doge_export.quantization.weights import quantizable_weights
from doge_export.targets.contract import node_input
from doge_export.targets.lowering import constant

HELD = 2**29
"""Bytes of matrices held at once; a large model needs several passes over the text."""


def gram_matrices(file: Path, texts: Texts) -> Iterator[tuple[frozenset[str], np.ndarray]]:
    """Run a graph over texts and yield the Gram matrix of every input of a linear layer.

    Args:
        file: the float32 graph.
        texts: calibration text.

    Yields:
        The names of the weights that read an input X [tokens, K], and X^T X, float32 [K, K].
    """
    with observed(file, _add_outputs) as (graph, outputs):
        widths = {name: width for name, (_, width) in outputs.items()}
        for group in _groups(widths):
            sums = [np.zeros((widths[name], widths[name]), np.float32) for name in group]
            for ids in texts.rows:
                for total, part in zip(sums, graph.run(ids, group), strict=True):
                    total += part
            for name in reversed(group):
                yield outputs[name][0], sums.pop()


def _add_outputs(model: ir.Model) -> dict[str, tuple[frozenset[str], int]]:
    """Add an output X^T X for each input X of linear layers.

    Returns:
        For the name of each output the names of the weights that read X, and the width K of X.
    """
    readers: dict[ir.Value, set[str]] = {}
    widths: dict[ir.Value, int] = {}
    for weight in quantizable_weights(model.graph):
        for node in weight.products:
            source = node_input(node, 0)
            readers.setdefault(source, set()).add(weight.name)
            widths[source] = weight.shape[1]
    outputs = {}
    for number, (source, names) in enumerate(readers.items()):
        width = widths[source]
        tape = Tape()
        flat = tape.op("Reshape", [source, constant(model.graph, np.array([-1, width]))])
        square = tape.op("MatMul", [tape.op("Transpose", [flat], {"perm": [1, 0]}), flat])
        square.name, square.dtype, square.shape = f"gram_{number}", ir.DataType.FLOAT, ir.Shape([width, width])
        model.graph.extend(tape.nodes)
        model.graph.outputs.append(square)
        outputs[square.name] = (frozenset(names), width)
    return outputs


def _groups(widths: dict[str, int]) -> Iterator[Sequence[str]]:
    """Yield the names of outputs in groups whose matrices take at most `HELD` bytes, or a single one."""
    group: list[str] = []
    for name in widths:
        if group and 4 * sum(widths[other] ** 2 for other in [*group, name]) > HELD:
            yield group
            group = []
        group.append(name)
    yield group
