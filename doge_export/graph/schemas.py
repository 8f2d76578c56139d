"""The signatures of the `doge` operators, as ONNX schemas."""

from __future__ import annotations

from onnx.defs import OpSchema

DOMAIN, VERSION = "doge", 1
OPSET, IR_VERSION = 23, 10
"""Versions in canonical graphs: of the standard operators, and of the ONNX file format."""
_REAL = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_TYPES = {"cos": "tensor(float)", "sin": "tensor(float)", "past_lengths": "tensor(int32)"}
"""Types of inputs that are never T; scores of keys and of experts are float32, too, whatever the rest is."""


def _schema(name: str, inputs: str, outputs: str, **attributes: OpSchema.AttrType) -> OpSchema:
    def parameters(names: str) -> list[OpSchema.FormalParameter]:
        types = ("tensor(float)" if "score" in part else _TYPES.get(part, "T") for part in names.split())
        return [OpSchema.FormalParameter(part, kind) for part, kind in zip(names.split(), types, strict=True)]

    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=parameters(inputs),
        outputs=parameters(outputs),
        type_constraints=[("T", _REAL, "activations and weights")],
        attributes=[OpSchema.Attribute(key, kind, required=True) for key, kind in attributes.items()],
    )


DYNAMIC_MASK_ATTENTION = _schema(
    "DynamicMaskAttention",
    "query key value score past_key past_value past_score",
    "output present_key present_value present_score",
    num_heads=OpSchema.AttrType.INT,
    kv_num_heads=OpSchema.AttrType.INT,
    scale=OpSchema.AttrType.FLOAT,
    keep_window_size=OpSchema.AttrType.INT,
)
CDMOE = _schema(
    "CDMoE",
    "hidden scores_x scores_y down_embed up_embed",
    "output",
    num_experts_per_tok=OpSchema.AttrType.INT,
    weights_inside=OpSchema.AttrType.INT,
)
RATIO_MASK_ATTENTION = _schema(
    "RatioMaskAttention",
    "query key value score past_key past_value past_score",
    "output present_key present_value present_score",
    num_heads=OpSchema.AttrType.INT,
    kv_num_heads=OpSchema.AttrType.INT,
    scale=OpSchema.AttrType.FLOAT,
    ratio=OpSchema.AttrType.STRING,  # of a float64: how many keys go depends on its last digits
    keep_window_size=OpSchema.AttrType.INT,
    of_excess=OpSchema.AttrType.INT,
    adds_causality=OpSchema.AttrType.INT,
)
FUSED_CDMOE = _schema(
    "FusedCDMoE",
    "hidden scores down_embed up_embed",
    "output",
    num_experts_per_tok=OpSchema.AttrType.INT,
    weights_inside=OpSchema.AttrType.INT,
    num_routing_heads=OpSchema.AttrType.INT,
    mixes_tokens=OpSchema.AttrType.INT,
)
"""Not in canonical graphs: `targets.passes.fuse_routing` makes it, for TensorRT's plugin."""
FUSED_DYNAMIC_MASK_ATTENTION = _schema(
    "FusedDynamicMaskAttention",
    "projected score_source score_weight score_rate cos sin past_key past_value past_score past_lengths",
    "output present_key present_value present_score",
    num_heads=OpSchema.AttrType.INT,
    kv_num_heads=OpSchema.AttrType.INT,
    scale=OpSchema.AttrType.FLOAT,
    keep_window_size=OpSchema.AttrType.INT,
    exponential_score=OpSchema.AttrType.INT,
    qk_norm=OpSchema.AttrType.INT,  # 1: two more inputs, query_norm and key_norm [D] float32
    epsilon=OpSchema.AttrType.FLOAT,
)
"""Not in canonical graphs: `targets.passes.fuse_attention` makes it, for TensorRT's plugin."""
