"""`doge-export quantize`: smaller graphs beside the float32 one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import folder_argument, json_option, quantization_options
from doge_export.cli.render import echo_json, size


@click.command()
@folder_argument
@quantization_options
@click.option("--force", is_flag=True, help="Make graphs anew that are there already.")
@json_option
def command(folder: Path, quantize: tuple[str, ...], dtype: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Add graphs of 8, 4 or 16 bits.

    FOLDER is what `doge-export onnx` wrote; its float32 graph is enough. Each new graph is compared with it on text
    that it was not made with. One that loses more than the limit fails the command with exit code 1, and FOLDER stays
    as it was.
    """
    from doge_export.quantization.quantize import quantize as add

    if not quantize and not dtype:
        raise click.UsageError("say what to add: --quantize int8, --quantize int4, --dtype fp16.")
    result = add(folder, [*quantize, *dtype], **options)
    if as_json:
        graphs = {name: result.manifest["graphs"][name] for name in result.qualities}
        echo_json({"folder": str(folder), "graphs": graphs, "manifest": result.manifest})
        return
    for line in quality_lines(result.manifest, result.qualities):
        click.echo(line)


def quality_lines(manifest: dict[str, Any], qualities: dict[str, Any]) -> list[str]:
    """A line for each new graph: its size and its losses."""
    return [
        f"{name}  {size(manifest['files'][name]['bytes'])}  {quality.summary_line()}"
        for name, quality in qualities.items()
    ]
