"""The divergence by position: quantisation is judged in every stretch of a text, not on the average of all tokens.

The first stretch ends at token 64, each later one is as long as all before it: 0-63, 64-127, 128-255, 256-511, ...
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from doge_export.package.manifest import Manifest
from doge_export.quantization.reduced_precision import ReducedPrecision

FIRST = 64
"""The end of the first stretch: keep_window_size of the bundled models, and a divisor of every published one."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest mean divergence of a stretch.

    Attributes:
        complete: where a token sees every key before it.
        selecting: where keys are left out by score.
        window: number of tokens at the beginning of a text that see every key before them; None for all.
    """

    complete: float
    selecting: float
    window: int | None = None

    @classmethod
    def of(cls, precision: ReducedPrecision, max_kl: float | None, manifest: Manifest) -> Self:
        """Return the limits of a precision for a folder; `max_kl`, if given, takes the place of both."""
        if max_kl is not None:
            return cls(max_kl, max_kl)
        return cls(precision.max_kl, precision.max_kl_selecting, _window(manifest))

    def at(self, end: int) -> float:
        """Return the limit of a stretch that ends before token `end`."""
        return self.complete if self.window is None or end <= self.window else self.selecting


@dataclasses.dataclass(frozen=True)
class Stretch:
    """The divergence of tokens at some positions, in texts of one length.

    Attributes:
        length: tokens of the longest text.
        first: position of the first token.
        end: position after the last token.
        texts: number of texts that reach it.
        positions: number of tokens (for classification, of texts) that were compared.
        kl_mean: mean divergence.
        kl_p99: its 99th percentile.
        kl_standard_error: standard error of `kl_mean`, from the means of the texts where there are several, since an
            exchanged key is felt by all later tokens of its text. NaN for a single number.
        perplexity_ratio: perplexity divided by that of the float32 file; None where nothing is predicted.
        limit: largest divergence that passes.
    """

    length: int
    first: int
    end: int
    texts: int
    positions: int
    kl_mean: float
    kl_p99: float
    kl_standard_error: float
    perplexity_ratio: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Return whether the limit is kept; NaN never does.

        With several texts also a standard error above the mean; what tokens of a single one tell of it is too little.
        """
        error = self.kl_standard_error
        return self.kl_mean + (error if self.texts > 1 and math.isfinite(error) else 0.0) <= self.limit

    def __str__(self) -> str:
        """Return where it is and its divergence, for people: "tokens 64-127 of 512: 0.0005"."""
        return f"tokens {self.first}-{self.end - 1} of {self.length}: {self.kl_mean:.2g}"


def stretches(rows: Sequence[tuple[int, np.ndarray, np.ndarray]], limits: Limits) -> list[Stretch]:
    """Return the stretches of texts, the first tokens first.

    Args:
        rows: for each text its number of tokens, the divergences [n], and what each next token's negative
            log-likelihood grew by [n - 1], which is empty where nothing is predicted.
        limits: of the divergence.
    """
    length = max(tokens for tokens, _, _ in rows)
    # The class of a text is one number, which belongs to the text's end.
    parts = bounds(length) if max(len(kl) for _, kl, _ in rows) > 1 else [(0, length)]
    found = []
    for first, end in parts:
        kls = [kl[first:end] for _, kl, _ in rows if len(kl) > first]
        growth = np.concatenate([more[first:end] for _, _, more in rows])
        found.append(_stretch(length, first, end, kls, growth, limits.at(end)))
    return found


def _stretch(length: int, first: int, end: int, kls: Sequence[np.ndarray], growth: np.ndarray, limit: float) -> Stretch:
    every = np.concatenate(kls)
    finite = bool(np.isfinite(every).all())
    samples = np.array([kl.mean() for kl in kls]) if len(kls) > 1 else every
    return Stretch(
        length=length,
        first=first,
        end=end,
        texts=len(kls),
        positions=len(every),
        kl_mean=float(every.mean()) if finite else math.nan,
        kl_p99=float(np.quantile(every, 0.99)) if finite else math.nan,
        kl_standard_error=float(samples.std(ddof=1) / math.sqrt(len(samples)))
        if finite and len(samples) > 1
        else math.nan,
        perplexity_ratio=float(np.exp(growth.mean())) if growth.size else None,
        limit=limit,
    )


def bounds(length: int) -> list[tuple[int, int]]:
    """Return first and end of each stretch of `length` tokens.

    A rest of less than three quarters of a stretch belongs to the one before it: few tokens of few texts are no measure
    of what an exchanged key does now and then.
    """
    ends = [FIRST]
    while ends[-1] < length:
        ends.append(2 * ends[-1])
    ends = [end for end in ends if end < length]
    if ends and length - ends[-1] < 0.75 * ends[-1]:
        ends.pop()
    return list(zip([0, *ends], [*ends, length], strict=True))


def _window(manifest: Manifest) -> int | None:
    """Return how many tokens see every key before them; None for all of max_length."""
    architecture = manifest.architecture
    mask = architecture.get("ratio_mask")
    if architecture.get("score") == "threshold":
        return 0
    window = int(mask["keep_window_size"] if mask else architecture.get("keep_window_size") or 0)
    return window if 0 < window < manifest.max_length else None
