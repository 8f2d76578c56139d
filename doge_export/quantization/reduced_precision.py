"""The reduced precisions that a folder may hold a model in beside fp32."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ReducedPrecision:
    """One form of a graph in fewer bits.

    Attributes:
        name: a `doge_export.precision.Precision`.
        bits: of a weight.
        block: weights to a scale; 0 where they have none.
        file: where other tools look for it.
        max_kl: mean KL divergence from the fp32 file that it may have in every stretch of a text, in nats.
        max_kl_selecting: the same of tokens beyond the keep_window_size, for which keys are left out by score. Rounding
            exchanges keys of near-equal scores there, and the divergence grows with every one; the perplexity does not.
        is_half: activations and caches are float16, else float32.
    """

    name: str
    bits: int
    block: int
    file: str
    max_kl: float
    max_kl_selecting: float
    is_half: bool = False


INT8 = ReducedPrecision("int8", 8, 128, "onnx/model_quantized.onnx", 0.01, 0.03)
INT4 = ReducedPrecision("int4", 4, 128, "onnx/model_q4.onnx", 0.15, 0.15)
FP16 = ReducedPrecision("fp16", 16, 0, "onnx/model_fp16.onnx", 0.001, 0.001, is_half=True)
Q4F16 = ReducedPrecision("q4f16", 4, 128, "onnx/model_q4f16.onnx", 0.15, 0.15, is_half=True)
REDUCED = {precision.name: precision for precision in (INT8, INT4, FP16, Q4F16)}
