"""The factor that some types of RoPE multiply cosines and sines by."""

from __future__ import annotations

import math

from doge_export.checkpoint.architecture import Rope


def attention_factor(rope: Rope, max_position_embeddings: int) -> float:
    """Return the factor of cos and sin, as transformers 5.23 reckons it (`ROPE_INIT_FUNCTIONS`); 1 for most types."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    original = rope.original_max_position_embeddings or max_position_embeddings
    factor = rope.factor if rope.factor is not None else max_position_embeddings / original
    if rope.rope_type == "longrope":
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
    return _mscale(factor)


def _mscale(scale: float, weight: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0
