"""The enum and the structs of plugins/include/doge/operators.h for ctypes."""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_float, c_int, c_int32, c_void_p


class DogeDtype(enum.IntEnum):
    """doge_dtype."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2


class AttentionParams(ctypes.Structure):
    """doge_attention_params."""

    _fields_ = (
        *((name, c_int32) for name in ("batch", "new_tokens", "capacity", "num_heads", "num_kv_heads")),
        *((name, c_int32) for name in ("num_score_heads", "head_size", "keep_window_size")),
        ("scale", c_float),
        ("dtype", c_int),
        *((name, c_void_p) for name in ("query", "key", "value", "score")),
        *((name, c_void_p) for name in ("past_key", "past_value", "past_score")),
        *((name, c_void_p) for name in ("past_lengths", "new_lengths", "past_slots")),
        *((name, c_void_p) for name in ("output", "present_key", "present_value", "present_score", "present_slots")),
    )


class FusedAttentionParams(ctypes.Structure):
    """doge_fused_attention_params."""

    _fields_ = (
        ("attention", AttentionParams),
        *((name, c_int32) for name in ("num_score_inputs", "exponential_score")),
        ("epsilon", c_float),
        *((name, c_void_p) for name in ("projected", "score_source", "score_weight", "score_rate", "cos", "sin")),
        *((name, c_void_p) for name in ("query_norm", "key_norm")),
    )


class CdmoeParams(ctypes.Structure):
    """doge_cdmoe_params."""

    _fields_ = (
        *((name, c_int32) for name in ("tokens", "hidden_size", "num_experts", "num_keys")),
        *((name, c_int32) for name in ("num_routing_heads", "num_experts_per_tok", "weights_inside", "score_stride")),
        ("dtype", c_int),
        *((name, c_void_p) for name in ("hidden", "scores_x", "scores_y", "down_embed", "up_embed", "output")),
    )


Params = AttentionParams | FusedAttentionParams | CdmoeParams
