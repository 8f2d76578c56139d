"""What a target may contain, as values that passes and packaging ask, instead of asking for a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Target:
    """A place where a graph will run.

    Attributes:
        name: as on the command line.
        opset: version of the standard ops, written into every file.
        ir_version: of the ONNX file format; onnx's own default is newer than runtimes read.
        summary: one line for help and model cards.
        passes: given `mixes_tokens` (reference CDMoE routing: padding rows are read by real ones), the lowering.
    """

    name: str
    opset: int
    ir_version: int
    summary: str
    passes: Callable[[bool], Sequence[ir.passes.InPlacePass]]
