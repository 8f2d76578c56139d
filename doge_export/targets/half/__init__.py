"""16-bit types for a graph, with float32 where 16 bits would not do.

The type of a node depends on its operator (`kinds`) and on what reads it (`flow`), never on its name:

- a kernel stores 16 bits and computes in float32 inside. Its scores of keys or experts are float32, and so is a norm
  that scores are computed from, so that nothing is rounded between the norm and a ranking;
- a product is in 16 bits, but in float32 where its result only feeds sensitive operators, a ranking or an exponential:
  the scores of keys and of experts, whose small differences matter;
- an operator of `FOLLOWING` is in float32 as soon as one of its inputs is, and back in 16 bits as early as its readers
  take them;
- any other operator is in float32: norms, softmax, angles, selection.

Inputs and outputs are float32 except for the caches of keys and values. A value is cast at most once to each type.
"""

from doge_export.targets.half.half_precision import HalfPrecision, operators_by_type
from doge_export.targets.half.prepare import prepare
from doge_export.targets.half.types import half_values, largest

__all__ = ["HalfPrecision", "half_values", "largest", "operators_by_type", "prepare"]
