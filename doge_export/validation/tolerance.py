"""How far a subject may be from the reference, by the type that it computes in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

LOGITS_TOLERANCE = 2e-4
"""Largest difference of a logit in float32 that passes, in standard deviations of the reference's logits."""

NEAR_TIE = 1e-4
"""Two logits of the reference closer than this have no order that float32 could be asked to keep."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The bars of a check.

    Attributes:
        logits: largest difference of a logit, in standard deviations of the reference's logits.
        near_tie, near_tie_of_std: two logits of the reference as close as this have no order that must be kept; in
            logits, and in standard deviations.
        mean_kl: largest mean KL divergence of a check's positions, in nats.
        max_disagreements: share of a check's positions, but at least one, whose argmax may be another without a near tie; None
            where none may.
    """

    logits: float = LOGITS_TOLERANCE
    near_tie: float = NEAR_TIE
    near_tie_of_std: float = 0.0
    mean_kl: float = math.inf
    max_disagreements: float | None = None

    def tie(self, std: float) -> float:
        """How far apart two logits may be to count as tied, where the reference's logits deviate by `std`."""
        return self.near_tie + self.near_tie_of_std * std

    def allowed(self, positions: int) -> int:
        """How many positions may have another argmax."""
        return 0 if self.max_disagreements is None else max(1, math.floor(self.max_disagreements * positions))

    def to_dict(self) -> dict[str, float]:
        """Those that are at work, for the manifest."""
        bars = {"max_abs_over_std": self.logits, "near_tie": self.near_tie}
        if self.max_disagreements is not None:
            bars |= {"near_tie_of_std": self.near_tie_of_std, "mean_kl": self.mean_kl, "strays": self.max_disagreements}
        return bars

    def __str__(self) -> str:
        text = f"max|Δ| <= {self.logits:g} of std, same argmax unless the top two are within "
        if self.max_disagreements is None:
            return f"{text}{self.near_tie:g}"
        return (
            f"{text}{self.near_tie_of_std:g} of std (but at {100 * self.max_disagreements:g} % of the positions, or one), "
            f"mean KL <= {self.mean_kl:g}"
        )


FLOAT32 = Tolerance()

FLOAT16 = Tolerance(logits=0.25, near_tie=0.0, near_tie_of_std=0.02, mean_kl=1e-3, max_disagreements=0.005)
"""11 binary digits, as factors in TF32 have. A different key or expert is selected here and there, which moves a logit
by up to 0.1 standard deviations in a small mixture of experts (measured; without experts 0.007), so the bars that bite
are those of all positions."""

BFLOAT16 = Tolerance(logits=1.0, near_tie=0.0, near_tie_of_std=0.16, mean_kl=3e-2, max_disagreements=0.02)
"""8 digits: eight times the rounding of float16, hence some eight times its bars, and squared in the divergence. With
every value rounded its mean was 1.5e-4 to 8e-4 on text and at real sizes (tests/trt/test_numerics.py), and 1.3e-2 where
rounding changes which 64 keys out of 272 random ones are kept (doge-nano beyond its trained length)."""

_BY_DTYPE = {"float32": FLOAT32, "tf32": FLOAT16, "fp16": FLOAT16, "bf16": BFLOAT16}


def tolerance_of(manifest: Mapping[str, Any]) -> Tolerance:
    """Of the folder's engine, by its precision; graphs of onnxruntime are proven in float32 (`quantize` has limits)."""
    if manifest.get("target") != "tensorrt":
        return FLOAT32
    return _BY_DTYPE[next(iter(manifest["graphs"].values()))["dtype"]]
