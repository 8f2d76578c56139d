"""What to do about a graph that loses more than its limit, with what was measured of it."""

from __future__ import annotations

import math

from doge_export.quantization.quality import Quality
from doge_export.quantization.reduced_precision import FP16, ReducedPrecision
from doge_export.quantization.stretches import Limits


def advice(
    precision: ReducedPrecision, quality: Quality, limits: Limits, max_length: int, float_cache: Quality | None
) -> str:
    """Return the cause where it is known, and what would keep the limit, in one line.

    Args:
        precision: of the graph.
        quality: of the graph, which failed.
        limits: of its divergence.
        max_length: of the folder.
        float_cache: quality of the same weights with a float32 cache; None where that is no choice or was not measured.
    """
    failed = quality.failed
    if failed is None:
        raise ValueError("the graph keeps its limit")
    error = failed.kl_standard_error
    parts = [f"{failed} ± {error if math.isfinite(error) else 0:.1g} (limit {failed.limit:g})"]
    if failed.perplexity_ratio is not None:
        parts[0] += f", perplexity {failed.perplexity_ratio - 1:+.2%} there"
    selects = limits.window is not None and failed.end > limits.window
    if selects:
        parts[0] += (
            f"; beyond keep_window_size {limits.window} keys are left out by score, and rounding exchanges near-equal "
            "ones"
        )
    choices = []
    if (length := _longest_kept(quality)) is not None and length < max_length:
        worst = max(part.kl_mean for part in quality.stretches if part.length <= length)
        choices.append(f"an export with --max-length {length} ({worst:.2g})")
    if float_cache is not None:
        if float_cache.passed:
            choices.append(f"--float-cache ({float_cache.kl_mean:.2g})")
        else:
            parts.append(f"a float32 cache does not ({float_cache.kl_mean:.2g})")
    # Beyond the window int8 has a lower limit than int4, and may not keep it either.
    if precision is not FP16:
        finer = "int8" if precision.bits == 4 and not selects else "fp16"
        choices.append(f"--precision {finer} (not measured here)")
    needed = max(part.kl_mean + (part.kl_standard_error or 0) for part in quality.stretches)
    setting = f"--max-kl {_rounded_up(needed):g}" if math.isfinite(needed) else "--max-kl"
    if choices:
        parts.insert(1, f"what would keep the limit: {', '.join(choices)}")
    return f"{'; '.join(parts)}; nothing was written ({setting} sets another limit that this graph keeps)"


def _longest_kept(quality: Quality) -> int | None:
    """Return the length of the longest texts that, like all shorter ones, keep the limit in every stretch."""
    kept = None
    for length in sorted({part.length for part in quality.stretches}):
        if not all(part.passed for part in quality.stretches if part.length == length):
            break
        kept = length
    return kept


def _rounded_up(value: float) -> float:
    """Return the next number of two digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
