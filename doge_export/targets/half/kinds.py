"""Kinds of operators, by the type they compute in."""

from __future__ import annotations

import dataclasses

from doge_export.graph.schemas import (
    CDMOE,
    DOMAIN,
    DYNAMIC_MASK_ATTENTION,
    FUSED_CDMOE,
    FUSED_DYNAMIC_MASK_ATTENTION,
    RATIO_MASK_ATTENTION,
)

PRODUCTS = {("", "MatMul"), ("", "Gemm"), ("com.microsoft", "FusedMatMul")}
"""Products: stored and multiplied in 16 bits, summed in the type that the processor has; GPUs sum in float32."""

FOLLOWING = {
    ("", name)
    for name in (
        "Add", "Concat", "Div", "Expand", "Gather", "GatherElements", "Identity", "Mul", "Neg", "Pad", "ReduceSum",
        "Reshape", "RotaryEmbedding", "ScatterElements", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "TensorScatter",
        "Transpose", "Unsqueeze", "Where",
    )
}  # fmt: skip
"""Arithmetic and movement, in the type of the inputs."""

JOINING = {"Concat", "TensorScatter"}
"""Operators that put new keys beside cached ones, whose type is given."""

SENSITIVE = {("", name) for name in ("Softplus", "Exp", "TopK", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")}
"""Operators whose result a small difference may flip, or that make a small difference a large one."""

EXTENTS = {"Shape", "Size"}
"""Operators that read no element of a value."""

NOT_REAL = EXTENTS | {
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "NonZero", "Not",
    "Or",
}  # fmt: skip
"""Operators that return integers or booleans for real numbers."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operator that stores 16 bits and computes in float32 inside.

    Attributes:
        float32_inputs: places of inputs that are float32 all the same, because rankings depend on them.
        float32_outputs: places of such outputs.
        float32_for_sensitive: the whole node is float32 where a sensitive operator reads its result, which is then not
            rounded.
    """

    float32_inputs: tuple[int, ...] = ()
    float32_outputs: tuple[int, ...] = ()
    float32_for_sensitive: bool = False


_ATTENTION = Kernel(float32_inputs=(3, 6), float32_outputs=(3,))
KERNELS = {
    (DOMAIN, DYNAMIC_MASK_ATTENTION.name): _ATTENTION,
    (DOMAIN, RATIO_MASK_ATTENTION.name): _ATTENTION,
    # All but the projection and the two caches of 16 bits; the weights of norms are the last.
    (DOMAIN, FUSED_DYNAMIC_MASK_ATTENTION.name): Kernel(
        float32_inputs=(1, 2, 3, 4, 5, 8, 10, 11), float32_outputs=(3,)
    ),
    (DOMAIN, CDMOE.name): Kernel(float32_inputs=(1, 2)),
    (DOMAIN, FUSED_CDMOE.name): Kernel(float32_inputs=(1,)),
    ("com.microsoft", "GroupQueryAttention"): Kernel(),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): Kernel(float32_outputs=(1, 2), float32_for_sensitive=True),
    ("com.microsoft", "SimplifiedLayerNormalization"): Kernel(float32_for_sensitive=True),
    ("", "RMSNormalization"): Kernel(float32_for_sensitive=True),
    ("", "Attention"): Kernel(),
}
"""The kernels. RMSNormalization computes in float32 up to the multiplication by the weight (stash_type)."""
