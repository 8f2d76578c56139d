"""The results of a validation: one for each check, and the verdict over all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from doge_export.validation.comparison import Comparison
from doge_export.validation.tolerance import FLOAT32, Tolerance


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        name: name of the check.
        description: what was fed.
        passed: None if nothing could be compared; `note` then gives the reason, so that no check is left out silently.
        metrics: those of `Comparison.metrics`, and further ones of the check.
        note: notes to the reader.
        comparison: arrays by position, for the report; not part of `to_dict`.
    """

    name: str
    description: str
    passed: bool | None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    comparison: Comparison | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def status(self) -> str:
        """One of "passed", "failed" and "not run"."""
        return {True: "passed", False: "failed", None: "not run"}[self.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: floats with 6 significant digits, None for numbers that are not finite."""
        return _plain(
            {
                "name": self.name,
                "description": self.description,
                "status": self.status,
                "passed": self.passed,
                "metrics": self.metrics,
                "note": self.note,
            }
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on whether an exported folder computes what its checkpoint computes.

    Attributes:
        checks: results of the checks, in order.
        reference: library, version, attention, dtype, model and revision of the reference, and a note.
        subject: target, task, max_length, cdmoe_routing, files with sha256, and runtime of the exported folder.
        seconds: time that the validation took.
        tolerance: bounds of the checks.
    """

    checks: tuple[CheckResult, ...]
    reference: dict[str, Any]
    subject: dict[str, Any]
    seconds: float = 0.0
    tolerance: Tolerance = FLOAT32

    @property
    def passed(self) -> bool:
        """True if no check failed and at least one passed."""
        return any(check.passed for check in self.checks) and all(check.passed is not False for check in self.checks)

    @property
    def judged_length(self) -> int:
        """Tokens of a row up to which positions were compared; 0 if none was."""
        return max((check.metrics.get("last_position", -1) + 1 for check in self.checks), default=0)

    @property
    def reach(self) -> str:
        """How far the checks read into what the export holds: "judged up to token 112 of 2048"."""
        return f"judged up to token {self.judged_length} of {self.subject.get('max_length')}"

    @property
    def tolerances(self) -> dict[str, float]:
        """The bounds of the checks as JSON values; see `Tolerance`."""
        return self.tolerance.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the manifest and `--json`."""
        return _plain(
            {
                "passed": self.passed,
                "summary": self.summary_line(),
                "judged_length": self.judged_length,
                "tolerances": self.tolerances,
                "reference": self.reference,
                "subject": self.subject,
                "seconds": self.seconds,
                "checks": [check.to_dict() for check in self.checks],
            }
        )

    def summary_line(self) -> str:
        """Return one line such as `PASSED  max|Δ| 3.1e-06 (1.2e-06 of std)  argmax 412/412  KL 2e-13  7 checks`."""
        run = [check for check in self.checks if check.metrics.get("positions")]
        parts = ["PASSED" if self.passed else "FAILED"]
        if run and all(check.metrics["finite"] for check in run):
            worst = max(run, key=lambda check: check.metrics["max_abs"])
            ratio = max((check.metrics["max_abs_over_std"] or 0.0) for check in run)
            parts.append(f"max|Δ| {worst.metrics['max_abs']:.1e} ({ratio:.1e} of std)")
            ranked = [check.metrics for check in run if "kl_max" in check.metrics]
            if ranked:
                positions = sum(metrics["positions"] for metrics in ranked)
                agree = sum(round(metrics["argmax_agreement"] * metrics["positions"]) for metrics in ranked)
                parts.append(f"argmax {agree}/{positions}")
                parts.append(f"KL {max(metrics['kl_max'] for metrics in ranked):.1e}")
        elif run:
            parts.append("logits that are not finite")
        counts = {status: sum(check.status == status for check in self.checks) for status in ("failed", "not run")}
        parts.append(", ".join([f"{len(self.checks)} checks", *(f"{n} {status}" for status, n in counts.items() if n)]))
        failed = [check.name for check in self.checks if check.passed is False]
        return "  ".join(parts) + (f": {', '.join(failed)}" if failed else "")

    def render_text(self) -> str:
        """Return a table for a terminal: a line for each check, the notes below, the summary last."""
        header = ("check", "", "max|Δ|", "of std", "argmax", "near ties", "KL max", "worst at")
        rows = [header, *(_row(check) for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(len(line) for line in lines))
        notes = [f"{check.name}: {check.note}" for check in self.checks if check.note]
        notes += [f"reference: {self.reference['note']}"] if self.reference.get("note") else []
        judge = (
            f"reference: {self.reference.get('library')} {self.reference.get('version')}, "
            f"{self.reference.get('attention')} attention, {self.reference.get('dtype')}; "
            f"bar: {self.tolerance}; {self.reach}"
        )
        return "\n".join([*lines, "", *notes, *([""] if notes else []), judge, self.summary_line()])


def _row(check: CheckResult) -> tuple[str, ...]:
    metrics = check.metrics
    if not metrics.get("positions"):
        return (check.name, check.status.upper(), "", "", "", "", "", "")
    worst = metrics["worst"]
    return (
        check.name,
        check.status.upper(),
        _number(metrics["max_abs"]),
        _number(metrics["max_abs_over_std"]),
        *ranked_cells(metrics, "kl_max"),
        f"{worst['run']}, row {worst['row']}, position {worst['position']}, token {worst['token']}",
    )


def ranked_cells(metrics: Mapping[str, Any], *kl: str) -> tuple[str, ...]:
    """Return argmax agreement, near ties and the `kl` metrics as table cells; empty cells if nothing is ranked."""
    if "argmax_agreement" not in metrics:
        return ("",) * (2 + len(kl))
    return (f"{metrics['argmax_agreement']:.2%}", str(metrics["near_ties"]), *(_number(metrics[name]) for name in kl))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]
