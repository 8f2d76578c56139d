"""`doge-export onnx`: a checkpoint becomes a validated folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import assumption_options, json_option, quantization_options, source_options
from doge_export.cli.quantize import quality_lines
from doge_export.cli.render import columns, echo_json, named_values, size
from doge_export.console import log


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "portable", "canonical"]),
    default="onnxruntime",
    show_default=True,
    help="What the graph is for: our runtime, anything that reads standard ONNX, or compilers with a plugin for our "
    "two operators.",
)
@assumption_options
@click.option(
    "--max-length",
    type=int,
    metavar="N",
    help="Tokens that prompt and answer may have together. [default: max_position_embeddings]",
)
@click.option(
    "--cdmoe-routing",
    type=click.Choice(["reference", "per-token"]),
    default="reference",
    show_default=True,
    help="How a mixture of experts chooses: as its published code does, mixing tokens, or each token for itself.",
)
@quantization_options
@source_options
@click.option("--trust-remote-code", is_flag=True, help="Refused: no code of a checkpoint is ever run.")
@click.option("--force", is_flag=True, help="Replace OUT when it is not empty.")
@click.option("--validate/--no-validate", default=True, help="Compare with PyTorch afterwards. [default: validate]")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write the comparison as a page.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@json_option
def command(model: str, out: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Export a checkpoint, proven equal to PyTorch.

    MODEL is a folder or a hub id. The folder OUT appears when all is done, or not at all. A failed validation writes
    nothing and exits with 1.
    """
    from doge_export import pipeline
    from doge_export.runtime.task_session import COMMANDS

    if options["report"] and not options["validate"]:
        raise click.UsageError("--report shows the comparison that --no-validate leaves out; drop one of them.")
    if dry_run:
        for name in ("validate", "report", "quantize", "dtype", "max_kl", "calibration", "eval_text", "float_cache"):
            del options[name]
        plan = pipeline.plan(model, out, **options).to_dict()
        echo_json(plan) if as_json else click.echo(columns(named_values(plan), indent=0))
        return
    result = pipeline.export(model, out, **options)
    bytes_written = sum(file["bytes"] for file in result.manifest["files"].values())
    if as_json:
        passed = result.verdict.passed if result.verdict is not None else None
        echo_json({"folder": str(out), "bytes": bytes_written, "passed": passed, "manifest": result.manifest})
        return
    click.echo(f"{out}  {size(bytes_written)} in {len(result.manifest['files'])} files")
    click.echo("not validated (--no-validate)" if result.verdict is None else result.verdict.summary_line())
    for line in quality_lines(result.manifest, result.qualities):
        click.echo(line)
    if result.verdict is not None and result.verdict.reference.get("note"):
        log(f"note: {result.verdict.reference['note']}")
    if "tokenizer.json" in result.manifest["files"]:
        verb = COMMANDS[result.manifest["task"]]
        click.echo(f'try: doge-export {verb} {shlex.quote(str(out))} "Hey how are you doing?"')
