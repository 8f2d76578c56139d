"""What operators need of the type they compute in."""

from __future__ import annotations

import dataclasses

PRODUCTS = {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}
"""Stored and multiplied in 16 bits, summed in whatever the processor has; GPUs have float32."""

FOLLOWING = {
    ("", name)
    for name in (
        "Add", "Concat", "Div", "Expand", "Gather", "GatherElements", "Identity", "Mul", "Neg", "Pad", "ReduceSum",
        "Reshape", "RotaryEmbedding", "ScatterElements", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "TensorScatter",
        "Transpose", "Unsqueeze", "Where",
    )
}  # fmt: skip
"""Arithmetic and movement, in the type of what comes in."""

JOINING = {"Concat", "TensorScatter"}
"""What puts new keys beside cached ones, which have a type already."""

DECIDING = {("", name) for name in ("Softplus", "Exp", "TopK", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")}
"""What a small difference may tip, or what makes a small difference a large one."""

EXTENTS = {"Shape", "Size"}
"""What reads no number of a value."""

NOT_REAL = EXTENTS | {
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not",
    "Or",
}  # fmt: skip
"""What gives integers or truth values of real numbers."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operator that stores 16 bits and takes care of float32 inside.

    Attributes:
        wide_inputs: places that are float32 all the same; what comes there decides.
        wide_outputs: the same of outputs.
        serves_decisions: it is a float32 node where a decision reads its result, which is then not rounded.
    """

    wide_inputs: tuple[int, ...] = ()
    wide_outputs: tuple[int, ...] = ()
    serves_decisions: bool = False


_ATTENTION = Kernel(wide_inputs=(3, 6), wide_outputs=(3,))
KERNELS = {
    ("doge", "DynamicMaskAttention"): _ATTENTION,
    ("doge", "RatioMaskAttention"): _ATTENTION,
    ("doge", "CDMoE"): Kernel(wide_inputs=(1, 2)),
    ("com.microsoft", "GroupQueryAttention"): Kernel(),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(wide_outputs=(1, 2), serves_decisions=True),
    ("com.microsoft", "SimplifiedLayerNormalization"): Kernel(serves_decisions=True),
    ("", "RMSNormalization"): Kernel(serves_decisions=True),
    ("", "Attention"): Kernel(),
}
"""RMSNormalization is defined with its first stage, up to the multiplication by the weight, in float32 (stash_type)."""
