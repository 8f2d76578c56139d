"""Where a report may be written, asked before the work whose report it is."""

from __future__ import annotations

from pathlib import Path

from doge_export.checkpoint.source import expanded
from doge_export.errors import DogeExportError


def report_path(path: str | Path, output: str | Path | None = None) -> Path:
    """The path of a report, `~` expanded.

    Raises DogeExportError where its folder does not exist, where it is itself a folder, and where it lies inside
    `output`, a folder that is about to be replaced.
    """
    path = expanded(path)
    if not path.parent.is_dir():
        raise DogeExportError(f"the report cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise DogeExportError(f"the report cannot be written: {path} is a folder; name a file")
    if output is not None and path.resolve().is_relative_to(expanded(output).resolve()):
        raise DogeExportError(
            f"the report {path} would lie in {output}, which this export writes; name a place beside it"
        )
    return path
