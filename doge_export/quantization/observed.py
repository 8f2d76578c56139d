"""Running a graph with more outputs: what is inside it is seen on texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from doge_export.package.disk import scratch_folder
from doge_export.package.onnx_file import write_onnx
from doge_export.quantization.whole import WholeTexts

Outputs = TypeVar("Outputs")


@contextlib.contextmanager
def observed(file: Path, add_outputs: Callable[[ir.Model], Outputs]) -> Iterator[tuple[WholeTexts, Outputs]]:
    """Open a copy of a graph that was given more outputs; it is deleted when the body ends.

    Args:
        file: the float32 graph.
        add_outputs: adds outputs to the graph and tells which.

    Yields:
        The graph, and what `add_outputs` returned.
    """
    model = ir.load(file)
    outputs = add_outputs(model)
    with scratch_folder() as folder:
        copy = folder / "observed.onnx"
        write_onnx(model, copy)
        del model
        yield WholeTexts(copy, packs=False), outputs
