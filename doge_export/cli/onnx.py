"""`doge-export onnx`: export of a checkpoint to a validated folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from doge_export.cli.options import (
    PATH,
    Length,
    assumption_options,
    cache_option,
    cdmoe_routing_option,
    force_option,
    json_option,
    max_length_option,
    quantization_options,
    source_options,
    validate_option,
)
from doge_export.cli.quantize import quality_lines
from doge_export.cli.render import columns, echo_json, named_values, trial_lines, written_facts, written_lines
from doge_export.console import log
from doge_export.installing import need


@click.command()
@click.argument("model")
@click.argument("out", type=PATH)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "portable", "canonical", "native"]),
    default="onnxruntime",
    show_default=True,
    help="Runtime of the graph: our own, anything that reads standard ONNX, compilers with a plugin for our two "
    "operators, or onnxruntime with the native decoder as its one operator.",
)
@assumption_options
@max_length_option(kind=Length())
@cache_option()
@cdmoe_routing_option(
    "How a mixture of experts chooses: as its published code does, mixing tokens, or each token for itself.",
    default="reference",
)
@quantization_options
@source_options
@click.option("--trust-remote-code", is_flag=True, help="Refused: no code of a checkpoint is ever run.")
@force_option
@validate_option
@click.option("--report", type=PATH, metavar="FILE.html", help="Write the comparison as a page.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@json_option
def command(model: str, out: Path, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Export a checkpoint, proven equal to PyTorch.

    MODEL is a folder or a hub id. The folder OUT appears when all is done, or not at all. A failed validation writes
    nothing and exits with 1.
    """
    need("export", "torch", "onnx", "onnxscript", "safetensors")
    from doge_export.pipeline.onnx import checked_places, export
    from doge_export.pipeline.plan import plan

    if options["report"] and not options["validate"]:
        raise click.UsageError("--report shows the comparison that --no-validate leaves out; drop one of them.")
    if dry_run:
        force = options.pop("force")
        report, _ = options.pop("report"), options.pop("validate")
        checked_places(model, out, report, force, **options)
        facts = {"output": str(out), **plan(model, **options).to_dict()}
        echo_json(facts) if as_json else click.echo(columns(named_values(facts), indent=0))
        return
    result = export(model, out, **options)
    if as_json:
        echo_json(written_facts(out, result.manifest))
        return
    for line in (*written_lines(out, result.manifest), *quality_lines(result.manifest, result.qualities)):
        click.echo(line)
    if result.verdict is not None and result.verdict.reference.get("note"):
        log(f"note: {result.verdict.reference['note']}")
    for line in trial_lines(out, result.manifest):
        click.echo(line)
