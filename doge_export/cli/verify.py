"""`doge-export verify`: comparison of a folder's files with its manifest, and of the manifest with its digest."""

from __future__ import annotations

from pathlib import Path

import click

from doge_export.cli.options import folder_argument, json_option
from doge_export.cli.render import echo_json
from doge_export.errors import DogeExportError
from doge_export.package import check_digest, manifest_digest, verify, verify_files


@click.command()
@folder_argument
@click.option(
    "--sha256",
    "digest",
    metavar="DIGEST",
    help="Refuse any folder but the one whose manifest has this sha256, as `onnx` and `verify` print it.",
)
@json_option
def command(folder: Path, digest: str | None, as_json: bool) -> None:
    """Compare every file with the manifest.

    Exits with 2 if a file of FOLDER is missing, changed or unexpected. This finds damage and edits. The manifest is not
    signed, so it does not prove who wrote it; with --sha256 DIGEST, from a place that you trust, it is the very one.
    """
    if as_json:
        if digest is not None:
            check_digest(folder, digest)
        problems = verify_files(folder)
        facts = {"folder": str(folder), "intact": not problems, "problems": problems}
        echo_json({**facts, "sha256": manifest_digest(folder)})
        if problems:
            raise DogeExportError(f"{folder} differs from its manifest: {problems[0]}")
        return
    manifest = verify(folder, digest)
    click.echo(f"sha256 of the manifest: {manifest_digest(folder)}")
    click.echo(f"{folder}: {len(manifest.files)} files, all as the manifest says")
