"""Plot of what smaller windows cost, by position."""

from __future__ import annotations

from pathlib import Path

from doge_export.benchmark.plot import COLORS, STYLE, save_plot
from doge_export.evaluation.windows import WindowsScore


def write_window_plot(score: WindowsScore, file: Path) -> None:
    """Draw perplexity and divergence against position, a line for each window; speed and memory are in its label.

    Raises:
        DogeExportError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8))
        left, right = figure.subplots(1, 2)
        for index, each in enumerate(score.windows):
            color = COLORS[index % len(COLORS)]
            memory = "" if each.cache_bytes is None else f", {each.cache_bytes / 1e6:.2f} MB"
            label = f"window {each.window}{' (trained)' * each.trained}: {each.tokens_per_second:.0f} tokens/s{memory}"
            known = [(place, part.perplexity) for place, part in enumerate(each.stretches) if part.perplexity]
            left.plot(*zip(*known, strict=True), "o-", color=color, markersize=4, label=label)
            if not each.trained:
                divergences = [max(part.kl_mean, 1e-8) for part in each.stretches]
                right.plot(divergences, "o-", color=color, markersize=4)
        names = [f"{part.first}-{part.end - 1}" for part in score.windows[0].stretches]
        for axes, title in ((left, "perplexity"), (right, "KL from the trained window, nats")):
            axes.set_title(title)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlabel("position")
        right.set_yscale("log")
        figure.legend(*left.get_legend_handles_labels(), loc="lower left", ncols=3)
        figure.subplots_adjust(left=0.06, right=0.99, top=0.92, bottom=0.2 + 0.06 * ((len(score.windows) + 2) // 3))
        save_plot(figure, file)
