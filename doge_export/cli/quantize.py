"""`doge-export quantize`: smaller graphs beside the fp32 one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli.options import folder_argument, json_option, quantization_options, verify_option
from doge_export.cli.render import echo_json, size
from doge_export.installing import need

if TYPE_CHECKING:
    from doge_export.package import Manifest
    from doge_export.quantization.quality import Quality


@click.command()
@folder_argument
@quantization_options
@click.option("--force", is_flag=True, help="Make graphs anew that are there already.")
@verify_option
@json_option
def command(folder: Path, precisions: tuple[str, ...], verify: bool, as_json: bool, **options: Any) -> None:
    """Add graphs of 8, 4 or 16 bits.

    FOLDER was written by `doge-export onnx`; its checkpoint is not needed. Each new graph is compared with the fp32
    graph, on text that was not used for calibration, as short as a prompt and as long as FOLDER allows. If one loses
    more than its limit at any stretch of a text, the command fails with exit code 1 and FOLDER stays as it was.
    """
    from doge_export.package import verify as verify_folder
    from doge_export.pipeline.quantize import quantize

    if not precisions:
        raise click.UsageError("say what to add: --precision int8, int4, fp16 or q4f16.")
    need("export", "onnx", "onnxscript")
    if verify:
        verify_folder(folder)
    result = quantize(folder, precisions, **options)
    if as_json:
        manifest = result.manifest.to_dict()
        graphs = {name: manifest["graphs"][name] for name in result.qualities}
        echo_json({"folder": str(folder), "graphs": graphs, "manifest": manifest})
        return
    for line in quality_lines(result.manifest, result.qualities):
        click.echo(line)


def quality_lines(manifest: Manifest, qualities: dict[str, Quality]) -> list[str]:
    """Return a line for each new graph: its size and its losses."""
    return [
        f"{name}  {size(manifest.files[name].bytes)}  {quality.summary_line()}" for name, quality in qualities.items()
    ]
