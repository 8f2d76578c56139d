"""`doge-export verify`: comparison of a folder's files with its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from doge_export.cli.options import folder_argument, json_option
from doge_export.cli.render import echo_json
from doge_export.errors import DogeExportError
from doge_export.package import verify, verify_files


@click.command()
@folder_argument
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Compare every file with the manifest.

    Exits with 2 if a file of FOLDER is missing, changed or unexpected. This finds damage and edits. The manifest is not
    signed, so it does not prove who wrote it.
    """
    if as_json:
        problems = verify_files(folder)
        echo_json({"folder": str(folder), "intact": not problems, "problems": problems})
        if problems:
            raise DogeExportError(f"{folder} differs from its manifest: {problems[0]}")
        return
    manifest = verify(folder)
    click.echo(f"{folder}: {len(manifest.files)} files, all as the manifest says")
