"""The report's plots, as SVG text to stand inside an HTML page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.validation.comparison import HISTOGRAM_EDGES, Comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from doge_export.validation.verdict import CheckResult

INK, SOFT, FAINT, BAD = "#1f2430", "#5b6270", "#c9ced8", "#c62828"
RUNS = ("#3b6fb6", "#d98218", "#3d8f5f", "#8a5bb0")
LEAST = 1e-12
"""Where a difference of zero is drawn on a logarithmic axis."""

LEAST_KL = 1e-16
"""Where a divergence of zero is drawn."""

WIDTH = 8.4
"""Inches of every figure: text of 10 points is 12 to 15 pixels high where the page shows 740 to 880 pixels of width."""

_BAR: Any = {"color": BAD, "linewidth": 1.2, "linestyle": (0, (4, 3))}

_STYLE: Any = {
    "figure.facecolor": "none",
    "figure.edgecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#eceef2",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def overview(checks: Sequence[CheckResult]) -> str:
    """Each check's largest difference over the standard deviation, against the tolerance."""
    compared = [check for check in checks if check.metrics.get("positions")]
    ratios = [check.metrics["max_abs_over_std"] for check in compared]
    bars = {check.comparison.tolerance.logits for check in compared if check.comparison}
    drawn = [ratio for ratio in [*ratios, *bars] if ratio]
    low = min(-8.0, *(np.floor(np.log10(drawn)) - 1)) if drawn else -8.0
    high = max(0.0, *(np.ceil(np.log10(drawn)))) if drawn else 0.0

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, (check, ratio) in enumerate(zip(compared, ratios, strict=True)):
            shown = float(_log(ratio, 10**low)) if ratio is not None else high
            color = BAD if check.passed is False else RUNS[0]
            axes.hlines(place, low, shown, color=color, linewidth=2.5, alpha=0.35)
            axes.plot([shown], [place], "o", color=color, markersize=7, clip_on=False)
            label = "not finite" if ratio is None else f"{ratio:.1e}" if ratio else "0"
            # On white: the line of the tolerance may pass behind it.
            box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axes.annotate(label, (shown, place), (9, 0), textcoords="offset points", va="center", bbox=box)
        for bar in bars:
            axes.axvline(float(np.log10(bar)), **_BAR, zorder=0.9)
            above = (float(np.log10(bar)), -0.75)
            axes.annotate(f"tolerance {bar:g}", above, (5, 0), textcoords="offset points", va="center", color=BAD)
        axes.set_yticks(range(len(compared)), [check.name for check in compared])
        axes.set_ylim(len(compared) - 0.5, -1.1)
        axes.set_xlim(low, high + 1.4)  # room for the label of the largest
        axes.set_xticks(_exponents(low, high + 1))
        axes.xaxis.set_major_formatter(_power)
        axes.set_title("Largest difference of each check")
        axes.set_xlabel("standard deviations of the reference's numbers")
        axes.tick_params(axis="y", length=0, pad=9)
        axes.grid(axis="y", visible=False)

    return _svg(draw, height=1.05 + 0.34 * max(len(compared), 2), salt="overview")


def by_position(name: str, comparison: Comparison) -> str:
    """One check: differences and (of what is ranked) KL by position, and the histogram of all differences."""
    finite = comparison.finite.any()
    # What has no largest has no divergence either.
    below = ["histogram", "divergence" if comparison.ranked else "histogram"]

    def draw(figure: Any) -> None:
        # One above the others: next to each other they would have no room for their titles.
        panels = figure.subplot_mosaic([["difference", "difference"], below] if finite else [["difference"]])
        _differences(panels["difference"], comparison)
        if finite:
            _histogram(panels["histogram"], comparison)
        if finite and comparison.ranked:
            _divergence(panels["divergence"], comparison)
        handles, labels = panels["difference"].get_legend_handles_labels()
        rows = -(-len(labels) // 4)
        columns = -(-len(labels) // rows)
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handletextpad=0.3, columnspacing=1.6)

    return _svg(draw, height=4.9 if finite else 1.7, salt=name)


def _differences(axes: Axes, comparison: Comparison) -> None:
    ok, position = comparison.finite, comparison.position
    largest, mean = _log(comparison.max_abs, LEAST), _log(comparison.mean_abs, LEAST)
    for index, label in enumerate(comparison.labels):
        at = ok & (comparison.run == index)
        color = RUNS[index % len(RUNS)]
        if at.any():
            axes.plot(position[at], largest[at], "o", ms=3.6, color=color, label=f"{label}: largest")
            axes.plot(position[at], mean[at], "_", ms=5, color=color, alpha=0.7, label=f"{label}: mean")
    at = ok & comparison.near_tie
    if at.any():
        axes.plot(position[at], largest[at], "o", ms=8, mfc="none", mec=INK, label="near tie")
    at = ok & comparison.argmax_disagreements
    if at.any():
        axes.plot(position[at], largest[at], "x", ms=7, color=BAD, label="different argmax")
    if ok.any():
        bar = float(_log(comparison.tolerance.logits * comparison.reference_std, LEAST))
        axes.axhline(bar, **_BAR, label="tolerance")
        _powers_up(axes, [*largest[ok], *mean[ok], bar], LEAST)
    else:
        axes.set_yticks([])
    if not ok.all():
        middle = np.full((~ok).sum(), 0.97 if ok.any() else 0.5)  # of the axes' height: it has no value
        across = axes.get_xaxis_transform()
        axes.plot(position[~ok], middle, "x", ms=7, color=BAD, transform=across, clip_on=False, label="not finite")
    axes.set_title("Difference at each position")
    _positions(axes, position)


def _histogram(axes: Axes, comparison: Comparison) -> None:
    filled = np.flatnonzero(comparison.histogram)
    widths = np.diff(HISTOGRAM_EDGES)[filled]
    heights = np.log10(comparison.histogram[filled])
    axes.bar(HISTOGRAM_EDGES[filled], heights + 0.3, widths, bottom=-0.3, align="edge", color=RUNS[0], alpha=0.75)
    bar = float(_log(comparison.tolerance.logits * comparison.reference_std, LEAST))
    axes.axvline(bar, **_BAR)
    drawn = [*HISTOGRAM_EDGES[filled], *HISTOGRAM_EDGES[filled + 1], bar]
    axes.set_xlim(min(drawn) - 0.5, max(drawn) + 0.5)
    axes.set_xticks(_exponents(min(drawn), max(drawn)))
    axes.xaxis.set_major_formatter(_power_from(LEAST))
    axes.set_ylim(-0.3, heights.max() + 0.3)  # a single number shows too
    axes.set_yticks(_exponents(0, heights.max()))
    axes.yaxis.set_major_formatter(_power)
    axes.set_title("How often each difference occurs")
    axes.set_xlabel("difference")
    axes.set_ylabel("count")


def _divergence(axes: Axes, comparison: Comparison) -> None:
    kl = _log(comparison.kl, LEAST_KL)
    for index in range(len(comparison.labels)):
        at = comparison.finite & (comparison.run == index)
        axes.plot(comparison.position[at], kl[at], "o", ms=3.6, color=RUNS[index % len(RUNS)])
    _powers_up(axes, kl[comparison.finite], LEAST_KL)
    axes.set_title("KL divergence at each position")
    axes.set_ylabel("nats")
    _positions(axes, comparison.position)


def _positions(axes: Axes, position: Any) -> None:
    """The axis of positions, the same in every panel of a check."""
    margin = max(0.03 * (position.max() - position.min()), 0.5)
    axes.set_xlim(position.min() - margin, position.max() + margin)
    axes.set_xlabel("position in the sequence")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _powers_up(axes: Axes, drawn: Any, least: float) -> None:
    """The y axis over the logarithms `drawn`, of which the smallest possible is that of `least`."""
    low, high = np.floor(min(drawn)), np.ceil(max(drawn))
    axes.set_ylim(low - 0.3, max(high, low + 1) + 0.3)
    axes.set_yticks(_exponents(low, max(high, low + 1)))
    axes.yaxis.set_major_formatter(_power_from(least))


def _exponents(low: float, high: float) -> Any:
    """At most seven whole exponents from low to high, the first of them included."""
    first, last = int(np.ceil(low)), int(np.floor(high))
    return np.arange(first, max(last, first) + 1, max(-(-(last - first) // 6), 1))


def _log(values: Any, least: float) -> Any:
    """log10, with zero (and NaN, for a deviation of nothing) drawn at `least`.

    Drawn on plain axes: matplotlib's logarithmic ones take seconds to lay out their labels.
    """
    return np.log10(np.fmax(values, least))


def _power(exponent: float, _: float = 0) -> str:
    return f"1e{exponent:g}"


def _power_from(least: float) -> Callable[[float, float], str]:
    """Labels where what is smaller than `least`, zero above all, is drawn at `least`."""
    lowest = round(np.log10(least))
    return lambda exponent, _: f"≤{_power(exponent)}" if exponent <= lowest else _power(exponent)


def _svg(draw: Any, *, height: float, salt: str) -> str:
    """The figure `draw` fills, as an <svg> element; salt keeps the ids of several figures in one page apart."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.04, wspace=0.04)
        figure = Figure(figsize=(WIDTH, height), layout=layout)
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        # Not savefig, which draws everything a first time for the layout alone.
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
