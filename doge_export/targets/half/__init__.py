"""Typing a graph in 16 bits, with float32 where 16 would not do.

A node is of one of these kinds, by its operator (`kinds`) and by what reads it (`flow`), never by its name:

- a kernel, which stores 16 bits and computes in float32 inside; its scores of keys or experts are float32, and a norm
  that scores are made from is float32 altogether, so that nothing is rounded between it and a decision;
- a product, 16 bits, but float32 where its result only goes to a ranking or into an exponential: the scores of keys and
  of experts, whose small differences decide;
- one that follows its inputs: float32 as soon as one of them is, and back in 16 bits as early as its readers take them;
- any other, float32: norms, softmax, angles, selection.

Inputs and outputs are float32 but for the caches of keys and values. A value is cast at most once to each type.
"""

from doge_export.targets.half.half_precision import HalfPrecision, operators_by_type
from doge_export.targets.half.prepare import prepare
from doge_export.targets.half.types import half_values, largest

__all__ = ["HalfPrecision", "half_values", "largest", "operators_by_type", "prepare"]
