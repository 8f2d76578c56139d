"""`doge-export validate`: comparison of an exported folder with its checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from doge_export import console
from doge_export.cli.options import (
    PATH,
    backend_option,
    folder_argument,
    host_code_option,
    json_option,
    source_options,
    verify_option,
)
from doge_export.cli.render import echo_json
from doge_export.installing import need
from doge_export.package import read_manifest


@click.command()
@folder_argument
@click.option("--model", metavar="MODEL", help="The checkpoint. [default: the one that FOLDER was exported from]")
@source_options
@click.option("--report", type=PATH, metavar="FILE.html", help="Write the comparison as a page.")
@backend_option
@verify_option
@host_code_option
@json_option
@click.pass_context
def command(ctx: click.Context, folder: Path, report: Path | None, as_json: bool, verify: bool, **options: Any) -> None:
    """Compare an exported folder with PyTorch.

    Runs FOLDER and its checkpoint side by side; says PASSED with exit code 0, or FAILED with 1. The reference is
    transformers with eager attention in float32, or our own PyTorch module for generations of Doge that transformers
    does not have.
    """
    need("export", "torch", "safetensors")
    from doge_export.package import verify as verify_folder
    from doge_export.paths import check_apart, report_path
    from doge_export.validation import validate

    if verify:
        verify_folder(folder)
    if report is not None:
        checkpoint = options["model"] or read_manifest(folder).source.model
        check_apart({"--report": report}, {"FOLDER": folder, "the checkpoint": checkpoint})
        report = report_path(report)
    with console.progress("comparing with PyTorch") as advance:
        verdict = validate(folder, on_progress=lambda done, total, name: advance(), **options)
    echo_json(verdict.to_dict()) if as_json else click.echo(verdict.render_text())
    if report is not None:
        from doge_export.validation.report import write_report

        write_report(verdict, report)
    ctx.exit(0 if verdict.passed else 1)
