"""The report's plots, as SVG text to stand inside an HTML page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.validation.comparison import HISTOGRAM_EDGES, Comparison

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from doge_export.validation.verdict import CheckResult

INK, FAINT, BAD = "#1f2430", "#c9ced8", "#c62828"
RUNS = ("#3b6fb6", "#d98218", "#3d8f5f", "#8a5bb0")
LEAST = 1e-12
"""Where a difference of zero is drawn on a logarithmic axis."""

_BAR: Any = {"color": BAD, "linewidth": 1.2, "linestyle": (0, (4, 3))}

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#eceef2",
    "xtick.color": "#5b6270",
    "ytick.color": "#5b6270",
    "legend.frameon": False,
}


def overview(checks: Sequence[CheckResult]) -> str:
    """Each check's largest difference over the standard deviation, against the tolerance."""
    compared = [check for check in checks if check.metrics.get("positions")]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, check in enumerate(compared):
            ratio = check.metrics["max_abs_over_std"]
            shown = float(_log(ratio, 1e-8)) if ratio is not None else 1.0
            color = BAD if check.passed is False else RUNS[0]
            axes.hlines(place, -8, shown, color=color, linewidth=2.5, alpha=0.35)
            axes.plot([shown], [place], "o", color=color, markersize=7)
            label = f"{ratio:.1e}" if ratio is not None else "not finite"
            axes.annotate(label, (shown, place), xytext=(9, 0), textcoords="offset points", va="center")
        for bar in {float(np.log10(check.comparison.tolerance.logits)) for check in compared if check.comparison}:
            axes.axvline(bar, **_BAR)
            axes.annotate("tolerance", (bar, -0.75), color=BAD, xytext=(5, 0), textcoords="offset points")
        axes.set_yticks(range(len(compared)), [check.name for check in compared])
        axes.set_ylim(len(compared) - 0.5, -1)
        axes.set_xlim(-8, 2)
        axes.set_xticks(range(-8, 3, 2))
        axes.xaxis.set_major_formatter(_power)
        axes.set_xlabel("max |Δ|, in standard deviations of the reference")
        axes.grid(axis="y", visible=False)

    height = 0.75 + 0.36 * max(len(compared), 2)
    margins = {"left": 0.215, "right": 0.98, "bottom": 0.5 / height, "top": 1 - 0.05 / height}
    return _svg(draw, size=(9, height), margins=margins, salt="overview")


def by_position(name: str, comparison: Comparison) -> str:
    """One check: differences and (of what is ranked) KL by position, and the histogram of all differences."""

    def draw(figure: Any) -> None:
        # What has no largest has no divergence either.
        widths = (1.5, 1, 1.2)[: 3 if comparison.ranked else 2]
        difference, histogram, *divergence = figure.subplots(1, len(widths), width_ratios=widths)
        _differences(difference, comparison)
        _histogram(histogram, comparison)
        for axes in divergence:
            _divergence(axes, comparison)
        handles, labels = difference.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower left", ncols=6, fontsize=8.5, handletextpad=0.3, borderpad=0)

    margins = {"left": 0.05, "right": 0.99, "bottom": 0.25, "top": 0.91, "wspace": 0.17}
    return _svg(draw, size=(11, 3.1), margins=margins, salt=name)


def _differences(axes: Axes, comparison: Comparison) -> None:
    ok, position = comparison.finite, comparison.position
    largest, mean = _log(comparison.max_abs, LEAST), _log(comparison.mean_abs, LEAST)
    for index, label in enumerate(comparison.labels):
        at = ok & (comparison.run == index)
        color = RUNS[index % len(RUNS)]
        axes.plot(position[at], largest[at], "o", ms=3.2, color=color, label=label)
        axes.plot(position[at], mean[at], "_", ms=3.5, color=color, alpha=0.5)
    at = ok & comparison.near_tie
    if at.any():
        axes.plot(position[at], largest[at], "o", ms=8, mfc="none", mec=INK, label="near tie of the reference")
    at = ok & ~comparison.argmax_equal & ~comparison.near_tie
    if at.any():
        axes.plot(position[at], largest[at], "x", ms=7, color=BAD, label="other argmax")
    if not ok.all():
        axes.plot(position[~ok], np.zeros((~ok).sum()), "x", ms=7, color=BAD, label="not finite")
    axes.axhline(_log(comparison.tolerance.logits * comparison.reference_std, LEAST), **_BAR)
    axes.set_title("|Δ| by position (dot max, dash mean)")
    _positions_and_powers(axes)


def _histogram(axes: Axes, comparison: Comparison) -> None:
    filled = np.flatnonzero(comparison.histogram)
    widths = np.diff(HISTOGRAM_EDGES)[filled]
    heights = np.log10(comparison.histogram[filled]) + 0.3  # a single logit shows too
    axes.bar(HISTOGRAM_EDGES[filled], heights, widths, bottom=-0.3, align="edge", color=RUNS[0], alpha=0.75)
    bar = _log(comparison.tolerance.logits * comparison.reference_std, LEAST)
    axes.axvline(bar, **_BAR)
    drawn = [*HISTOGRAM_EDGES[filled], *HISTOGRAM_EDGES[filled + 1], bar]
    axes.set_xlim(min(drawn) - 0.5, max(drawn) + 0.5)
    axes.set_ylim(bottom=-0.3)
    axes.set_title("how many numbers differ by how much")
    axes.set_xlabel("|Δ|")
    axes.locator_params(integer=True, nbins=6)
    axes.xaxis.set_major_formatter(_power)
    axes.yaxis.set_major_formatter(_power)


def _divergence(axes: Axes, comparison: Comparison) -> None:
    kl = _log(comparison.kl, 1e-16)
    for index in range(len(comparison.labels)):
        at = comparison.finite & (comparison.run == index)
        axes.plot(comparison.position[at], kl[at], "o", ms=3.2, color=RUNS[index % len(RUNS)])
    axes.set_title("KL by position, nats")
    _positions_and_powers(axes)


def _positions_and_powers(axes: Axes) -> None:
    axes.set_xlabel("position")
    axes.locator_params(axis="x", integer=True)
    low, high = axes.get_ylim()
    axes.set_ylim(np.floor(low), np.ceil(high))
    axes.locator_params(axis="y", integer=True, nbins=6)
    axes.yaxis.set_major_formatter(_power)


def _log(values: Any, least: float) -> Any:
    """log10, with zero (and NaN, for a deviation of nothing) drawn at `least`.

    Drawn on plain axes: matplotlib's logarithmic ones take seconds to lay out their labels.
    """
    return np.log10(np.fmax(values, least))


def _power(exponent: float, _: float) -> str:
    return f"1e{exponent:g}"


def _svg(draw: Any, *, size: tuple[float, float], margins: dict[str, float], salt: str) -> str:
    """The figure `draw` fills, as an <svg> element; salt keeps the ids of several figures in one page apart."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.subplots_adjust(**margins)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
