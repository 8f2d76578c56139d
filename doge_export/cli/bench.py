"""`doge-export bench`: how fast a folder answers."""

from __future__ import annotations

from pathlib import Path

import click

from doge_export.cli.options import folder_argument, json_option, threads_option
from doge_export.cli.render import columns, echo_json, size


@click.command()
@folder_argument
@click.option(
    "--compare",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="MODEL",
    help="A local checkpoint to run in PyTorch (transformers, if it can), in the same process, in turns.",
)
@click.option("--prompt-length", type=click.IntRange(1), default=16, show_default=True, help="Tokens before decoding.")
@click.option("--new-tokens", type=click.IntRange(1), default=200, show_default=True, help="Tokens to decode.")
@click.option("--prefill-length", type=click.IntRange(1), default=512, show_default=True, help="Tokens to prefill.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of which the median is shown.")
@threads_option
@json_option
def command(folder: Path, as_json: bool, **options: int | Path | None) -> None:
    """Time decoding, prefill, loading and memory.

    Tokens a second: the median of the rounds, with the lowest and the highest.
    """
    from doge_export.benchmark.bench import bench

    result = bench(folder, **options)  # type: ignore[arg-type]
    if as_json:
        echo_json(result.to_dict())
        return
    rows = [("", "decode tok/s", "", "prefill tok/s", "")]
    for subject, rates in result.rates.items():
        cells = [text for low, mid, high in rates.values() for text in (f"{mid:.1f}", f"({low:.1f} to {high:.1f})")]
        rows.append((subject, *cells))  # type: ignore[arg-type]
    if result.ratio("decode"):
        rows.append(("ratio", f"{result.ratio('decode'):.2f}x", "", f"{result.ratio('prefill'):.2f}x", ""))
    click.echo(columns(rows, indent=0))
    process = result.process
    click.echo(
        f"a fresh process: import {process['import_seconds']:.2f} s, load {process['load_seconds']:.2f} s, "
        f"load and first token {process['first_token_seconds']:.2f} s, peak memory {size(process['peak_bytes'])} "
        f"({size(process['base_bytes'])} of it before loading)"
    )
    click.echo("  ".join(f"{name} {value}" for name, value in result.settings.items() if value is not None))
