"""Plot of speed and latency against context length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.benchmark.bench import Benchmark
from doge_export.errors import DogeExportError
from doge_export.package.atomic_file import written_file
from doge_export.paths import check_file

COLORS = ("#3b6fb6", "#d98218", "#3d8f5f", "#8a5bb0", "#c62828", "#5b6270")

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "doge-export",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9ced8",
    "grid.color": "#eceef2",
    "legend.frameon": False,
}


def plot_path(file: str | Path) -> Path:
    """Return the path of a plot, once it is known that the plot can be drawn and written there.

    Raises:
        DogeExportError: the suffix is neither .svg nor .png, or no file can be written there.
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # noqa: F401

    file = Path(file)
    if file.suffix.lower() not in (".svg", ".png"):
        raise DogeExportError(f"--plot {file} ends in neither .svg nor .png, the formats it is drawn in")
    check_file("--plot", file)
    return file


def write_plot(result: Benchmark, file: Path) -> None:
    """Draw the measurements at the contexts of `result`: medians, and a band from the 10th to the 90th percentile.

    Raises:
        DogeExportError: nothing was measured at a context, or the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    contexts = result.settings["contexts"]
    if not contexts:
        raise DogeExportError("there is nothing to plot: measure at one context at least")
    panels: list[tuple[str, Callable[[str, int], Any]]] = [
        ("decoding, tokens/s", lambda name, at: np.array(result.rates[name][f"decode@{at}"])),
        ("decoding, ms per token", lambda name, at: 1000 / np.array(result.rates[name][f"decode@{at}"])[::-1]),
        ("time to first token, ms", lambda name, at: 1000 * np.array(result.seconds[name][f"first_token@{at}"])),
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.6))
        for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for index, name in enumerate(result.subjects):
                low, median, high = np.array([values(name, context) for context in contexts]).T
                color = COLORS[index % len(COLORS)]
                axes.fill_between(range(len(contexts)), low, high, color=color, alpha=0.15, linewidth=0)
                axes.plot(range(len(contexts)), median, "o-", color=color, markersize=4, label=name)
            axes.set_title(title)
            axes.set_xticks(range(len(contexts)), [str(context) for context in contexts])
            axes.set_xlabel("tokens of context")
            axes.set_ylim(bottom=0)
        handles, labels = axes.get_legend_handles_labels()
        rows = (len(labels) + 3) // 4
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 0.05), ncols=4)
        conditions = f"{result.machine['cpu']}, threads: {result.settings['threads'] or 'default'}"
        figure.text(0.01, 0.02, conditions, color="#5b6270", fontsize=8)
        figure.subplots_adjust(left=0.05, right=0.99, top=0.92, bottom=0.23 + 0.06 * rows, wspace=0.2)
        save_plot(figure, file)


def save_plot(figure: Any, file: Path) -> None:
    """Write a figure as its suffix says, .svg or .png, the same bytes for the same figure.

    Raises:
        DogeExportError: the file cannot be written.
    """
    kind = file.suffix.lower().removeprefix(".")
    metadata = {"Date": None, "Creator": None} if kind == "svg" else None
    with written_file("--plot", file) as stream:
        figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
