"""A target as a value: what its graphs may contain, which packaging asks for instead of asking for a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir as ir

from doge_export.graph.schemas import IR_VERSION, OPSET


@dataclasses.dataclass(frozen=True)
class Traits:
    """The properties of a model that decide how it is lowered.

    Attributes:
        cached: the model is a language model with a cache; models of other tasks read a text in one call.
        fully_masked_rows: rows with every key masked must attend evenly to all keys, as in transformers, because other
            tokens read them or because they may belong to tokens.
        static_rope: keys are rotated, and the RoPE frequencies do not depend on the length.
        max_length: the most tokens that a sequence may have.
        bounded: the cache keeps keep_window_size keys a layer and head, see `passes.bounded_attention`.
    """

    cached: bool = True
    fully_masked_rows: bool = False
    static_rope: bool = False
    max_length: int = 0
    bounded: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """A place where a graph will run.

    Attributes:
        name: its name on the command line.
        summary: one line for help and model cards.
        passes: returns the passes that lower a model with the given traits.
        interface: how the graph of a language model is fed, see `package.manifest.Interface`.
        bounded_interface: the same with a bounded cache; None for a target that has none.
        opset: version of the standard ops that is written into the file; that of the trace by default.
        ir_version: version of the ONNX file format; onnx's own default is newer than runtimes read.
        keeps_operators: nodes of domain `doge` stay, for a plugin that knows DynamicMaskAttention and CDMoE and no
            other operator.
    """

    name: str
    summary: str
    passes: Callable[[Traits], Sequence[ir.passes.InPlacePass]]
    interface: str
    opset: int = OPSET
    ir_version: int = IR_VERSION
    keeps_operators: bool = False
    bounded_interface: str | None = None
