"""`doge-export bench`: speed and memory of exported folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli.options import (
    EXPORTED,
    PATH,
    PRECISION,
    device_option,
    host_code_option,
    json_option,
    threads_option,
    verify_option,
)
from doge_export.cli.render import columns, echo_json, size
from doge_export.installing import need
from doge_export.paths import check_apart

if TYPE_CHECKING:
    from doge_export.benchmark.bench import Benchmark


@click.command()
@click.argument("folders", metavar="FOLDER...", type=EXPORTED, nargs=-1, required=True)
@click.option(
    "--precision",
    type=PRECISION,
    multiple=True,
    help="Graph of each folder to time. May be given several times. [default: fp32 if it is there]",
)
@click.option(
    "--compare",
    metavar="MODEL",
    help="A checkpoint to run in PyTorch (transformers, if it can), in the same process, in turns.",
)
@click.option("--prompt-length", type=click.IntRange(1), default=16, show_default=True, help="Tokens before decoding.")
@click.option("--new-tokens", type=click.IntRange(1), default=200, show_default=True, help="Tokens to decode.")
@click.option("--prefill-length", type=click.IntRange(1), default=512, show_default=True, help="Tokens to prefill.")
@click.option(
    "--context",
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    help="Time decoding and the first token behind N tokens too. May be given several times.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Times that each is measured; the median is shown.",
)
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    help="Draw speed and latency against context, as .svg or .png. [contexts by default: 64, 128, 256...]",
)
@click.option(
    "--backend",
    type=click.Choice(("native", "graph")),
    multiple=True,
    help="What computes on a CPU: the native decoder, or onnxruntime. May be given twice. [default: as load]",
)
@click.option(
    "--window",
    type=int,
    multiple=True,
    metavar="N",
    help="Keys that a token sees, fewer than the model was trained with: timed beside it. May be given several times.",
)
@device_option
@threads_option
@verify_option
@host_code_option
@json_option
def command(folders: tuple[Path, ...], plot: Path | None, as_json: bool, **options: Any) -> None:
    """Time decoding, prefill, loading and memory.

    Folders and precisions are timed side by side, in turns. Shows the median of the rounds, the 10th and the 90th
    percentile, and the ratio of each one's speed to that of the --compare checkpoint, or else of the first.
    """
    from doge_export.benchmark.bench import bench, contexts_to_plot

    if options["compare"] is not None:
        need("export", "torch", "safetensors")
    if plot is not None:
        from doge_export.benchmark.plot import plot_path, write_plot

        plot = plot_path(plot)
        check_apart({"--plot": plot}, {"FOLDER": folders, "--compare": options["compare"]})
        options["context"] = options["context"] or contexts_to_plot(folders)
    result = bench(folders, **options)
    if plot is not None:
        write_plot(result, plot)
    echo_json(result.to_dict()) if as_json else click.echo(_table(result))


def _table(result: Benchmark) -> str:
    asked = result.settings
    titles = {
        "decode": f"decode {asked['new_tokens']} after {asked['prompt_length']}",
        "prefill": f"prefill {asked['prefill_length']}",
        "first_token": f"first token after {asked['prompt_length']}",
    }
    rows: list[tuple[str, ...]] = []
    for unit, show, timings in (
        ("tokens/s", lambda rate: f"{rate:.1f}", result.rates),
        ("ms", lambda seconds: f"{1000 * seconds:.2f}", result.seconds),
    ):
        for measure in next(iter(timings.values())):
            name, _, context = measure.partition("@")
            title = f"{name.replace('_', ' ')} at context {context}" if context else titles[name]
            rows.append((title, unit, "p10 to p90", "ratio" if result.baseline else ""))
            for subject, measures in timings.items():
                low, median, high = map(show, measures[measure])
                ratio = result.ratio(subject, measure)
                rows.append((f"  {subject}", median, f"{low} to {high}", "" if ratio is None else f"{ratio:.2f}x"))
    return "\n".join((columns(rows, indent=0), _processes(result), _conditions(result)))


def _processes(result: Benchmark) -> str:
    rows = [("a fresh process", "import", "load", "and first token", "peak memory", "before loading", "file")]
    for subject, process in result.process.items():
        seconds = (process[f"{what}_seconds"] for what in ("import", "load", "first_token"))
        sizes = (process["peak_bytes"], process["base_bytes"], result.subjects[subject]["file_bytes"])
        rows.append((f"  {subject}", *(f"{value:.2f} s" for value in seconds), *map(size, sizes)))  # type: ignore[arg-type]
    return columns(rows, indent=0)


def _conditions(result: Benchmark) -> str:
    by = {subject: facts["computed_by"] for subject, facts in result.subjects.items() if "computed_by" in facts}
    settings = {**result.settings, **result.machine}
    settings |= {"by": "; ".join(f"{subject}: {what}" if len(by) > 1 else what for subject, what in by.items())}
    return "  ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, []))
