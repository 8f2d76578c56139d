"""The validation that a folder must pass before it is moved to its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doge_export.console import log, progress
from doge_export.errors import DogeExportError, RunFailed
from doge_export.validation.validator import validate
from doge_export.validation.verdict import Verdict


def require_validation(
    folder: Path, advice: str, *, report: Path | None = None, **options: Any
) -> tuple[Verdict, DogeExportError | None]:
    """Validate a folder with a progress bar, write the report in any case, and raise if the folder fails.

    Args:
        folder: an exported folder, complete but for the verdict.
        advice: what to do about a failure, for the message.
        report: HTML file to write.
        options: keyword arguments of `validate`.

    Returns:
        The verdict; and why the report could not be written, None if it was or is not asked for.

    Raises:
        RunFailed: the folder does not agree with PyTorch.
    """
    log("validating against PyTorch")
    with progress("validating against PyTorch") as advance:
        verdict = validate(folder, on_progress=lambda done, total, name: advance(), **options)
    unwritten = None
    if report is not None:
        from doge_export.validation.report import write_report

        try:
            write_report(verdict, report)
        except DogeExportError as error:
            unwritten = error
    if not verdict.passed:
        also = "" if unwritten is None else f"; {unwritten}"
        raise RunFailed(f"{verdict.summary_line()}; nothing was written ({advice}){also}")
    return verdict, unwritten
