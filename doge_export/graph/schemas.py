"""The signatures of the `doge` operators, as ONNX schemas."""

from __future__ import annotations

from onnx.defs import OpSchema

DOMAIN, VERSION = "doge", 1
OPSET, IR_VERSION = 23, 10
"""Versions in canonical graphs: of the standard operators, and of the ONNX file format."""
_REAL = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def _schema(name: str, inputs: str, outputs: str, **attributes: OpSchema.AttrType) -> OpSchema:
    def parameters(names: str) -> list[OpSchema.FormalParameter]:
        # Scores of keys and of experts are float32 whatever the rest is.
        return [OpSchema.FormalParameter(part, "tensor(float)" if "score" in part else "T") for part in names.split()]

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
