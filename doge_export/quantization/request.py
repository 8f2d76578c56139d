"""Which graphs in fewer bits are wanted, refused before anything is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from doge_export.errors import DogeExportError
from doge_export.quantization.reduced_precision import FP16, REDUCED, ReducedPrecision


@dataclasses.dataclass(frozen=True)
class QuantizationRequest:
    """Precisions to add to a folder, and how they are made and judged.

    Attributes:
        precisions: forms of `REDUCED`, each once.
        max_kl: mean KL divergence that each may have, in nats; by default what its precision allows.
        calibration: UTF-8 file that shows what inputs and caches are like; by default the fp32 model writes the text.
        eval_text: UTF-8 file to compare graphs on; by default the fp32 model writes the text.
        float_cache: keys and values stay float32; else int8 and int4 graphs for onnxruntime cache them in 8 bits.
        expand_weights: int8 and int4 weights become float32 when a graph is loaded, for runtimes without fast kernels
            of few bits: onnxruntime-web's WebAssembly. For target portable.
    """

    precisions: tuple[ReducedPrecision, ...]
    max_kl: float | None = None
    calibration: Path | None = None
    eval_text: Path | None = None
    float_cache: bool = False
    expand_weights: bool = False

    @classmethod
    def of(
        cls,
        precisions: Sequence[str] = (),
        max_kl: float | None = None,
        calibration: str | Path | None = None,
        eval_text: str | Path | None = None,
        float_cache: bool = False,
        expand_weights: bool = False,
        *,
        target: str,
    ) -> Self | None:
        """Return the request of an export for `target`; None without precisions.

        Raises:
            DogeExportError: as `checked`; or something is said of no precision.
        """
        if not precisions:
            if float_cache or expand_weights or any(value is not None for value in (max_kl, calibration, eval_text)):
                raise DogeExportError(
                    "a limit, a text, a cache or expanded weights are asked for, but no precision; add "
                    "--precision int8 or --precision fp16"
                )
            return None
        return cls.checked(precisions, max_kl, calibration, eval_text, float_cache, expand_weights, target=target)

    @classmethod
    def checked(
        cls,
        precisions: Sequence[str],
        max_kl: float | None = None,
        calibration: str | Path | None = None,
        eval_text: str | Path | None = None,
        float_cache: bool = False,
        expand_weights: bool = False,
        *,
        target: str | None = None,
    ) -> Self:
        """Return a request.

        Raises:
            DogeExportError: a precision is not known or not for `target`, the limit is below 0, a file is not there.
        """
        unknown = [name for name in precisions if name not in REDUCED]
        if unknown or not precisions:
            raise DogeExportError(
                f"cannot quantise to {', '.join(unknown) or 'nothing'}; choose {' or '.join(REDUCED)}"
            )
        for given, what in ((float_cache, "a float32 cache"), (expand_weights, "expanding weights")):
            if given and all(REDUCED[name].is_half for name in precisions):
                raise DogeExportError(
                    f"{what} is a choice of int8 and int4 only; add --precision int8, or leave it out"
                )
        if max_kl is not None and not (max_kl >= 0 and math.isfinite(max_kl)):
            raise DogeExportError(f"max KL is {max_kl}, expected a number from 0")
        request = cls(
            precisions=tuple(REDUCED[name] for name in dict.fromkeys(precisions)),
            max_kl=max_kl,
            calibration=_text(calibration),
            eval_text=_text(eval_text),
            float_cache=float_cache,
            expand_weights=expand_weights,
        )
        request.check_target(target)
        return request

    def check_target(self, target: str | None) -> None:
        """Refuse precisions that a graph for `target` does not come in.

        Raises:
            DogeExportError: the target is canonical, and a precision is not fp16; or weights are to be expanded for
                another target than portable.
        """
        if target == "native":
            raise DogeExportError(
                "a folder of target native is written with its precisions at once: export the checkpoint again with "
                "--target native and --precision"
            )
        if target == "canonical" and any(precision is not FP16 for precision in self.precisions):
            raise DogeExportError(
                "a graph for target canonical is quantised by the compiler it is for: export for onnxruntime or "
                "portable, or leave it at --precision fp16"
            )
        if self.expand_weights and target not in (None, "portable"):
            raise DogeExportError(
                f"weights are expanded for target portable alone, and this is {target}: leave --expand-weights out, or "
                "export with --target portable"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "precisions": [precision.name for precision in self.precisions],
            "max_kl": self.max_kl,
            "calibration": None if self.calibration is None else str(self.calibration),
            "eval_text": None if self.eval_text is None else str(self.eval_text),
            "float_cache": self.float_cache,
            "expand_weights": self.expand_weights,
        }


def _text(name: str | Path | None) -> Path | None:
    """Return the file of a text, if one was named."""
    file = None if name is None else Path(name).expanduser()
    if file is not None and not file.is_file():
        raise DogeExportError(f"text {file} is not a file; give one in UTF-8")
    return file
