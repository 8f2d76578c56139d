"""What a target may contain, as values that passes and packaging ask, instead of asking for a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Traits:
    """What of a model decides how it is lowered.

    Attributes:
        cached: it is a language model over a cache; other tasks read a text in one call.
        whole_rows: rows that see no key at all are read by others, or may be those of tokens.
        static_rope: keys are rotated, and by frequencies that depend on no length.
        max_length: tokens a sequence may have.
    """

    cached: bool = True
    whole_rows: bool = False
    static_rope: bool = False
    max_length: int = 0


@dataclasses.dataclass(frozen=True)
class Target:
    """A place where a graph will run.

    Attributes:
        name: as on the command line.
        opset: version of the standard ops, written into every file.
        ir_version: of the ONNX file format; onnx's own default is newer than runtimes read.
        summary: one line for help and model cards.
        passes: the lowering of a model with such traits.
        interface: how a language model's graph is fed, see `package.manifest.Interface`.
        keeps_operators: nodes of domain `doge` stay, for a plugin that knows the two operators and no other.
    """

    name: str
    opset: int
    ir_version: int
    summary: str
    passes: Callable[[Traits], Sequence[ir.passes.InPlacePass]]
    interface: str
    keeps_operators: bool = False
