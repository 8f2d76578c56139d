"""The fastest form for onnxruntime: its attention kernel over caches updated in place, and few, wide nodes."""

from __future__ import annotations

from doge_export.targets.contract import GraphPass
from doge_export.targets.passes.bounded_attention import BoundedAttention
from doge_export.targets.passes.fold_scores import FoldScores
from doge_export.targets.passes.fuse_projections import FuseProjections
from doge_export.targets.passes.group_query_attention import GroupQueryAttention
from doge_export.targets.passes.inline_functions import InlineFunctions
from doge_export.targets.passes.logits_to_keep import NumLogitsToKeep
from doge_export.targets.passes.routed_experts import RoutedExperts
from doge_export.targets.passes.skip_norm import SkipNorm
from doge_export.targets.passes.standard_attention import StandardAttention
from doge_export.targets.passes.transpose_weights import TransposeWeights
from doge_export.targets.passes.transposed_matmul import TransposedMatMul
from doge_export.targets.target import Target, Traits


def _attention(traits: Traits) -> list[GraphPass]:
    if traits.bounded:  # GroupQueryAttention knows no key by its slot
        return [BoundedAttention()]
    return [FoldScores(), GroupQueryAttention(traits)] if traits.cached else [StandardAttention()]


ONNXRUNTIME = Target(
    name="onnxruntime",
    summary="for doge-export's own runtime: GroupQueryAttention, caches updated in place",
    passes=lambda traits: (
        *_attention(traits),
        RoutedExperts(),
        InlineFunctions(),
        TransposeWeights(),
        FuseProjections(),
        TransposedMatMul(),
        SkipNorm(),
        *([NumLogitsToKeep()] if traits.cached else []),
    ),
    interface="in-place",
    bounded_interface="bounded",
)
