"""What the inputs of linear layers look like on calibration text: X^T X, summed over its tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.package.onnx_file import write_onnx
from doge_export.quantization.texts import Texts
from doge_export.quantization.weights import sites_of
from doge_export.quantization.whole import WholeTexts
from doge_export.targets.lowering import constant

HELD = 2**29
"""Bytes of moments held at once; a large model's are taken in several readings of the text."""


def moments_of(file: Path, texts: Texts) -> Iterator[tuple[frozenset[str], np.ndarray]]:
    """Names of the weights that read an input [K], and its moments, float32 [K, K]; for every input of a linear layer.

    file: the float32 graph.
    """
    model = ir.load(file)
    outputs = _add_outputs(model)
    with tempfile.TemporaryDirectory(prefix="doge-export-") as folder:
        observed = Path(folder) / "observed.onnx"
        write_onnx(model, observed)
        widths = {name: width for name, (_, width) in outputs.items()}
        del model
        graph = WholeTexts(observed, packs=False)
        for group in _groups(widths):
            sums = [np.zeros((widths[name], widths[name]), np.float32) for name in group]
            for ids in texts.rows:
                for total, part in zip(sums, graph.run(ids, group), strict=True):
                    total += part
            for name in reversed(group):
                yield outputs[name][0], sums.pop()


def _add_outputs(model: ir.Model) -> dict[str, tuple[frozenset[str], int]]:
    """An output X^T X for each input X of linear layers: by its name, the weights that read X, and the width of X."""
    readers: dict[ir.Value, set[str]] = {}
    for site in sites_of(model.graph):
        for node in site.products:
            source = node.inputs[0]
            assert source is not None
            readers.setdefault(source, set()).add(site.name)
    outputs = {}
    for number, (source, names) in enumerate(readers.items()):
        width = next(site.shape[1] for site in sites_of(model.graph) if site.name in names)
        tape = Tape()
        flat = tape.op("Reshape", [source, constant(model.graph, np.array([-1, width]))])
        square = tape.op("MatMul", [tape.op("Transpose", [flat], {"perm": [1, 0]}), flat])
        square.name, square.dtype, square.shape = f"moments_{number}", ir.DataType.FLOAT, ir.Shape([width, width])
        model.graph.extend(tape.nodes)
        model.graph.outputs.append(square)
        outputs[square.name] = (frozenset(names), width)
    return outputs


def _groups(widths: dict[str, int]) -> Iterator[Sequence[str]]:
    group: list[str] = []
    for name in widths:
        if group and 4 * sum(widths[other] ** 2 for other in [*group, name]) > HELD:
            yield group
            group = []
        group.append(name)
    yield group
