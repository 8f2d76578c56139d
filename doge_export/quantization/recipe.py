"""The storage of each weight in a precision.

8 bits: round to nearest, symmetric, 128 weights to a scale. Nothing better was measurable: the rounding of the
inputs to 8 bits weighs more.

4 bits: symmetric, 128 weights to a scale; linear layers by GPTQ with calibration text, tables (and the tied head, which
is one) with fitted scales. A layer that rounding hurts much more than others is stored in 8 bits instead: see
`SENSITIVE`.

128 weights rather than 32 or 64: onnxruntime's 4-bit kernel is bound by arithmetic, and takes 8.5 us for 512 x 2048
weights instead of 12.4 and 11.3 (one thread, AVX-512 VNNI). doge-nano, mean KL: 0.0103, with 64 0.0087, with 32 0.0064;
doge-nano-moe 0.0223, 0.0201, 0.0154; perplexity in each case within 1.7 % of float32.

Other methods, with 32 to a scale, mean KL on 4144 tokens of doge-nano for onnxruntime: nearest 0.0189 (with zero points
0.0166), scales fitted by plain least squares 0.0141, weighted by E[x^2] 0.0117, GPTQ 0.0069. doge-nano-moe,
portable, 4237 tokens: 0.0353 (0.0287), 0.0275, 0.0256, 0.0157. Zero points made GPTQ no better (0.0071, 0.0162), HQQ's
were no better than those of the nearest (0.0146 against 0.0147, 0.0276 against 0.0271). Scores and router at 4 bits
cost nothing that could be measured, nor did any layer stand out: 4 bits change 0.02 to 0.4 % of an output by energy.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.quantization.blocks import StoredRows
from doge_export.quantization.gptq import gptq
from doge_export.quantization.gram_matrices import gram_matrices
from doge_export.quantization.reduced_precision import INT8, ReducedPrecision
from doge_export.quantization.rounding import fitted, nearest
from doge_export.quantization.texts import Texts
from doge_export.quantization.weights import QuantizableWeight

SMALLEST = 2**12
"""A matrix of fewer weights stays float32: those of the scores, which enter an exponential."""

SENSITIVE = 0.02
"""Relative squared error of a layer's output on calibration text beyond which 4 bits become 8."""

BLOCKS = (128, 64, 32, 16)
"""Block sizes that MatMulNBits and GatherBlockQuantized both take."""


@dataclasses.dataclass
class Stored:
    """The storage of all weights of a graph.

    Attributes:
        rows: for the name of each weight its rows in order, from the first output to the last.
        exceptions: the manifest's entries for weights that are stored otherwise than the rest.
    """

    rows: dict[str, list[StoredRows]]
    exceptions: dict[str, dict[str, Any]]

    def __call__(self, weight: QuantizableWeight) -> Sequence[StoredRows]:
        """Return the rows of a weight; see `quantize_weights.Storage`."""
        return self.rows[_before_halving(weight)]

    def exceptions_of(self, weights: Iterable[QuantizableWeight]) -> dict[str, dict[str, Any]]:
        """Return `exceptions`, those that stay floats with the type that they have in a graph by now."""
        types = {_before_halving(weight): weight.dtype.name.lower() for weight in weights}
        return {
            name: how | {"dtype": types.get(name, how["dtype"])} if how["dtype"] == "float32" else how
            for name, how in self.exceptions.items()
        }


def _before_halving(weight: QuantizableWeight) -> str:
    """Return the name of a weight in the float32 graph: read in both types it has two versions in one of 16 bits."""
    return weight.name.removesuffix(".float16")


def store(
    weights: Iterable[QuantizableWeight], precision: ReducedPrecision, file: Path, calibration: Texts | None
) -> Stored:
    """Quantize every weight.

    Args:
        weights: of the graph in `file`.
        precision: bits and block size.
        file: the float32 graph.
        calibration: text for GPTQ; only 8 bits do without.
    """
    by_name = {weight.name: weight for weight in weights}
    stored = Stored({}, {})
    for weight in by_name.values():
        block = _block(precision, weight.shape[1])
        if block is None or weight.matrix().size < SMALLEST:
            _keep(stored, weight)
        elif precision.bits == 8:
            stored.rows[weight.name] = [(slice(0, weight.shape[0]), nearest(weight.matrix(), 8, block))]
        elif weight.lookups:
            stored.rows[weight.name] = [(slice(0, weight.shape[0]), fitted(weight.matrix(), precision.bits, block))]
    if precision.bits == 8:
        return stored
    if calibration is None:
        raise ValueError(f"{precision.name} needs calibration text")
    for names, gram in gram_matrices(file, calibration):
        for name in sorted(names - stored.rows.keys()):
            _calibrated(stored, by_name[name], precision, gram)
    return stored


def _block(precision: ReducedPrecision, width: int) -> int | None:
    """Return the block size for rows of this width; None where none divides it."""
    return next((block for block in BLOCKS if block <= precision.block and width % block == 0), None)


def _keep(stored: Stored, weight: QuantizableWeight) -> None:
    rows, width = weight.shape
    why = "small" if rows * width < SMALLEST else f"rows of {width}"
    stored.rows[weight.name] = [(slice(0, rows), None)]
    stored.exceptions[weight.name] = {"dtype": "float32", "why": why}


def _calibrated(stored: Stored, weight: QuantizableWeight, precision: ReducedPrecision, gram: np.ndarray) -> None:
    """Quantize by GPTQ, but sensitive parts of a fused weight in 8 bits; neighbours of one kind are stored together."""
    matrix, width = weight.matrix(), weight.shape[1]
    block = _block(precision, width)
    if block is None:
        raise ValueError(f"{weight.name}: no block divides rows of {width}")
    codes = gptq(matrix, gram, precision.bits, block)
    errors = {name: relative_error(matrix[rows], codes.dequantized()[rows], gram) for name, rows in weight.parts()}
    sensitive = {name: error for name, error in errors.items() if error > SENSITIVE}
    finer = nearest(matrix, INT8.bits, _block(INT8, width) or block) if sensitive else codes
    runs = _runs(weight, sensitive)
    stored.rows[weight.name] = [(rows, (finer if is_sensitive else codes).rows(rows)) for rows, is_sensitive in runs]
    for name, error in sensitive.items():
        stored.exceptions[name] = {"dtype": "int8", "why": f"4 bits change {error:.1%} of its output"}


def relative_error(weight: np.ndarray, stored: np.ndarray, gram: np.ndarray) -> float:
    """Return |(W - W') X|^2 / |W X|^2 for the Gram matrix X X^T [K, K] of the inputs."""
    difference = weight - stored
    energy = float(np.vdot(weight @ gram, weight))
    return float(np.vdot(difference @ gram, difference)) / energy if energy > 0 else 0.0


def _runs(weight: QuantizableWeight, sensitive: Mapping[str, float]) -> Iterator[tuple[slice, bool]]:
    """Yield the outputs in as few slices as possible, and whether each is sensitive."""
    for is_sensitive, parts in itertools.groupby(weight.parts(), lambda part: part[0] in sensitive):
        slices = [rows for _, rows in parts]
        yield slice(slices[0].start, slices[-1].stop), is_sensitive
