"""How each weight is stored in a precision.

8 bits: rounded to the nearest, symmetric, 128 weights to a scale. Nothing better was measurable: the rounding of the
inputs to 8 bits weighs more.

4 bits: symmetric, 128 weights to a scale; linear layers by GPTQ with calibration text, tables (and the tied head, which
is one) with fitted scales. A layer that rounding hurts much more than others is stored in 8 bits instead: see
`SENSITIVE`.

128 weights rather than 32 or 64: onnxruntime's 4-bit kernel is bound by arithmetic, and takes 8.5 us for 512 x 2048
weights instead of 12.4 and 11.3 (one thread, AVX-512 VNNI). doge-nano, mean KL: 0.0103, with 64 0.0087, with 32 0.0064;
doge-nano-moe 0.0223, 0.0201, 0.0154; perplexity in each case within 1.7 % of float32.

What else was tried, with 32 to a scale, mean KL on 4144 tokens of doge-nano for onnxruntime: nearest 0.0189 (with zero
points 0.0166), scales fitted by plain least squares 0.0141, weighted by E[x^2] 0.0117, GPTQ 0.0069. doge-nano-moe,
portable, 4237 tokens: 0.0353 (0.0287), 0.0275, 0.0256, 0.0157. Zero points made GPTQ no better (0.0071, 0.0162), HQQ's
were no better than those of the nearest (0.0146 against 0.0147, 0.0276 against 0.0271). Scores and router at 4 bits
cost nothing that could be measured, nor did any layer stand out: 4 bits change 0.02 to 0.4 % of an output by energy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.quantization.blocks import Blocks
from doge_export.quantization.gptq import gptq
from doge_export.quantization.input_moments import moments_of
from doge_export.quantization.precision import INT8, ReducedPrecision
from doge_export.quantization.rounding import fitted, nearest
from doge_export.quantization.texts import Texts
from doge_export.quantization.weights import Site

SMALLEST = 2**12
"""Weights of a matrix below which it stays float32: those that make the scores, which enter an exponential."""

SENSITIVE = 0.02
"""Share of a layer's output, by energy on calibration text, that 4-bit rounding may change before it gets 8 bits."""

BLOCKS = (128, 64, 32, 16)
"""Sizes that both operators take."""

Piece = tuple[slice, Blocks | None]


@dataclasses.dataclass
class Stored:
    """The weights of a graph, by name of the site, and what the manifest says of those that are not as the rest."""

    pieces: dict[str, list[Piece]]
    exceptions: dict[str, dict[str, Any]]

    def __call__(self, site: Site) -> Sequence[Piece]:
        """See `quantize_weights.Storage`."""
        return self.pieces[site.name]


def store(sites: Iterable[Site], precision: ReducedPrecision, file: Path, calibration: Texts | None) -> Stored:
    """Codes for every site. file: the float32 graph, run on `calibration` where the precision asks for it."""
    by_name = {site.name: site for site in sites}
    stored = Stored({}, {})
    for site in by_name.values():
        block = _block(precision, site.shape[1])
        if block is None or site.weight().size < SMALLEST:
            _keep(stored, site)
        elif precision.bits == 8:
            stored.pieces[site.name] = [(slice(0, site.shape[0]), nearest(site.weight(), 8, block))]
        elif site.lookups:
            stored.pieces[site.name] = [(slice(0, site.shape[0]), fitted(site.weight(), precision.bits, block))]
    if precision.bits == 8:
        return stored
    assert calibration is not None
    for names, moments in moments_of(file, calibration):
        for name in sorted(names - stored.pieces.keys()):
            _calibrated(stored, by_name[name], precision, moments)
    return stored


def _block(precision: ReducedPrecision, width: int) -> int | None:
    """Weights to a scale in rows of that width; None where no block fits."""
    return next((block for block in BLOCKS if block <= precision.block and width % block == 0), None)


def _keep(stored: Stored, site: Site) -> None:
    rows, width = site.shape
    why = "small" if rows * width < SMALLEST else f"rows of {width}"
    stored.pieces[site.name] = [(slice(0, rows), None)]
    stored.exceptions[site.name] = {"dtype": "float32", "why": why}


def _calibrated(stored: Stored, site: Site, precision: ReducedPrecision, moments: np.ndarray) -> None:
    """GPTQ, part by part of a joined weight; neighbours of the same kind are stored together."""
    weight, width = site.weight(), site.shape[1]
    block = _block(precision, width)
    assert block is not None
    codes = gptq(weight, moments, precision.bits, block)
    errors = {name: relative_error(weight[rows], codes.dequantized()[rows], moments) for name, rows in site.parts()}
    sensitive = {name: error for name, error in errors.items() if error > SENSITIVE}
    finer = nearest(weight, INT8.bits, _block(INT8, width) or block) if sensitive else codes
    pieces: list[Piece] = []
    for rows, name_is_sensitive in _runs(site, sensitive):
        pieces.append((rows, (finer if name_is_sensitive else codes).rows(rows)))
    stored.pieces[site.name] = pieces
    for name, error in sensitive.items():
        stored.exceptions[name] = {"dtype": "int8", "why": f"4 bits change {error:.1%} of its output"}


def relative_error(weight: np.ndarray, stored: np.ndarray, moments: np.ndarray) -> float:
    """|(W - W') X|^2 / |W X|^2 for moments X X^T."""
    difference = weight - stored
    energy = float(np.vdot(weight @ moments, weight))
    return float(np.vdot(difference @ moments, difference)) / energy if energy > 0 else 0.0


def _runs(site: Site, sensitive: Mapping[str, float]) -> Iterator[tuple[slice, bool]]:
    """Outputs of a site from first to last, as few slices as there are changes."""
    start, previous = 0, None
    for name, rows in site.parts():
        if previous is not None and (name in sensitive) != previous:
            yield slice(start, rows.start), previous
            start = rows.start
        previous = name in sensitive
    assert previous is not None
    yield slice(start, site.shape[0]), previous
