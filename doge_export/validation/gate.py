"""The comparison that a folder must pass before it appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doge_export.console import log, progress
from doge_export.errors import RunFailed
from doge_export.validation.validator import validate
from doge_export.validation.verdict import Verdict


def require_validation(folder: Path, advice: str, *, report: Path | None = None, **options: Any) -> Verdict:
    """`validate` with a bar, and with the report written whatever it says.

    Args:
        folder: complete but for the verdict.
        advice: what to do where it fails, for the message.
        report: an HTML file to write.
        options: as `validate` takes them.

    Raises RunFailed where the folder does not agree with PyTorch.
    """
    log("validating against PyTorch")
    with progress("validating against PyTorch") as advance:
        verdict = validate(folder, on_progress=lambda done, total, name: advance(), **options)
    if report is not None:
        from doge_export.validation.report import write_report

        write_report(verdict, report)
    if not verdict.passed:
        raise RunFailed(f"{verdict.summary_line()}; nothing was written ({advice})")
    return verdict
