"""The form that any ONNX reader runs: standard ops of opset 21, and the input and output names of the ecosystem."""

from __future__ import annotations

from doge_export.targets.passes.bounded_attention import BoundedAttention
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.logits_to_keep import NumLogitsToKeep
from doge_export.targets.passes.primitives import PrimitiveRMSNorm, PrimitiveRotaryEmbedding
from doge_export.targets.passes.routed_experts import RoutedExperts
from doge_export.targets.passes.standard_attention import StandardAttention
from doge_export.targets.passes.transpose_weights import TransposeWeights
from doge_export.targets.target import Target

PORTABLE = Target(
    name="portable",
    opset=21,
    summary="for anything that reads ONNX: standard ops, key/value caches only",
    passes=lambda traits: (
        BoundedAttention() if traits.bounded else StandardAttention(),
        RoutedExperts(),
        InlineFunctions(),
        PrimitiveRMSNorm(),
        PrimitiveRotaryEmbedding(),
        TransposeWeights(),
        *([NumLogitsToKeep(default=1)] if traits.cached else []),
    ),
    interface="growing",
    bounded_interface="bounded",
)
