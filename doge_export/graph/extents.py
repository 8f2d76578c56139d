"""Find the types of a recording's values, and which of their axes follow the inputs.

A graph is run on two small examples whose batch, new tokens and cached tokens differ. An axis of the same size in both
runs is the model's own. Any other is a multiple of a named extent and is told by the ratio of its two sizes; no two
extents have the same ratio, and a size of the model cannot be taken for one, since it does not change.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
"""Axis names that other tools know: transformers.js takes exactly `batch_size` for the batch."""
TOTAL = f"{PAST} + {NEW}"


@dataclasses.dataclass(frozen=True)
class ExampleSizes:
    """Sizes of the dynamic axes in one example."""

    batch: int
    new: int
    past: int

    def extents(self) -> dict[str, int]:
        """Return every size that an axis may follow, by name."""
        total, tokens = self.past + self.new, self.batch * self.new
        return {BATCH: self.batch, NEW: self.new, PAST: self.past, TOTAL: total, f"{BATCH} * {NEW}": tokens}


EXAMPLES = ExampleSizes(batch=2, new=3, past=4), ExampleSizes(batch=3, new=5, past=9)
_FIRST, _SECOND = (sizes.extents() for sizes in EXAMPLES)
_NAMES = {Fraction(_FIRST[name], _SECOND[name]): name for name in _FIRST}


@dataclasses.dataclass(frozen=True)
class Type:
    """Element type of a tensor, and its axes: a size, or the name of a dynamic axis."""

    dtype: ir.DataType
    axes: tuple[int | str, ...]


def type_of(first: Any, second: Any) -> Any:
    """Return what both runs' results of a call have in common: a Type, the axes of a shape, or a tuple of these."""
    if isinstance(first, Tensor):
        return Type(ir.tensor_adapters.from_torch_dtype(first.dtype), type_of(first.shape, second.shape))
    if isinstance(first, torch.Size):
        return tuple(_axis(*sizes) for sizes in zip(first, second, strict=True))
    if isinstance(first, tuple | list):
        return tuple(type_of(*parts) for parts in zip(first, second, strict=True))
    return None


def _axis(first: int, second: int) -> int | str:
    if first == second:
        return first
    name = _NAMES[Fraction(first, second)]
    return name if first == _FIRST[name] else f"{first // _FIRST[name]} * {name}"
