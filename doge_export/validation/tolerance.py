"""The tolerances of a validation, by the data type that the subject computes in."""

from __future__ import annotations

import dataclasses
import math

from doge_export.package.manifest import Manifest

LOGITS_TOLERANCE = 2e-4
"""Largest difference of a float32 logit that passes, in standard deviations of the reference's logits."""

NEAR_TIE = 1e-4
"""Largest difference of two logits of the reference whose order float32 need not keep."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The bounds that a check must keep.

    Attributes:
        logits: largest difference of a logit, in standard deviations of the reference's logits.
        near_tie: constant part of a near tie, in logits; see `tie`.
        near_tie_of_std: part of a near tie in standard deviations of the reference's logits.
        mean_kl: largest mean KL divergence over a check's positions, in nats.
        disagreement_share: share of a check's positions at which the argmax may differ without a near tie; one
            position may in any case. None: no position may.
    """

    logits: float = LOGITS_TOLERANCE
    near_tie: float = NEAR_TIE
    near_tie_of_std: float = 0.0
    mean_kl: float = math.inf
    disagreement_share: float | None = None

    def tie(self, std: float) -> float:
        """Return the largest difference of two logits that are a near tie, if the reference's logits deviate by `std`.

        The order of nearly tied logits need not be kept.
        """
        return self.near_tie + self.near_tie_of_std * std

    def allowed(self, positions: int) -> int:
        """Return at how many of `positions` the argmax may differ without a near tie."""
        return 0 if self.disagreement_share is None else max(1, math.floor(self.disagreement_share * positions))

    def to_dict(self) -> dict[str, float]:
        """Return the bounds in force, for the manifest."""
        bars = {"max_abs_over_std": self.logits, "near_tie": self.near_tie}
        if self.disagreement_share is not None:
            bars |= {
                "near_tie_of_std": self.near_tie_of_std,
                "mean_kl": self.mean_kl,
                "disagreement_share": self.disagreement_share,
            }
        return bars

    def __str__(self) -> str:
        text = f"max|Δ| <= {self.logits:g} of std, same argmax unless the top two are within "
        if self.disagreement_share is None:
            return f"{text}{self.near_tie:g}"
        return (
            f"{text}{self.near_tie_of_std:g} of std (but at {100 * self.disagreement_share:g} % of the positions,"
            f" or one), mean KL <= {self.mean_kl:g}"
        )


FLOAT32 = Tolerance()

FLOAT16 = Tolerance(logits=0.25, near_tie=0.0, near_tie_of_std=0.02, mean_kl=1e-3, disagreement_share=0.005)
"""For 11-bit significands: float16, and the factors of TF32 products. Now and then another key or expert is selected,
which moves a logit by up to 0.1 standard deviations in a small mixture of experts (measured; without experts 0.007).
The bounds that detect faults are therefore those over all positions: mean KL and share of disagreements."""

BFLOAT16 = Tolerance(logits=1.0, near_tie=0.0, near_tie_of_std=0.16, mean_kl=3e-2, disagreement_share=0.02)
"""For 8-bit significands, with eight times the rounding of float16: about eight times its bounds, more for KL, which
grows with the square. With every value rounded, mean KL was 1.5e-4 to 8e-4 on text and at real sizes
(tests/trt/test_numerics.py), and 1.3e-2 where rounding changes which 64 of 272 random keys are kept (doge-nano beyond
its trained length)."""

_BY_PRECISION = {"fp32": FLOAT32, "tf32": FLOAT16, "fp16": FLOAT16, "bf16": BFLOAT16}


def tolerance_of(manifest: Manifest) -> Tolerance:
    """Return the tolerance of a folder: by precision for a TensorRT engine, float32's for graphs of onnxruntime.

    Quantised graphs are not validated here: `quantize` has bounds of its own.
    """
    if manifest.target != "tensorrt":
        return FLOAT32
    return _BY_PRECISION[next(iter(manifest.graphs.values())).precision]
