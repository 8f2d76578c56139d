"""The validation report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.errors import DogeExportError
from doge_export.validation import plots
from doge_export.validation.verdict import ranked_cells

if TYPE_CHECKING:
    from doge_export.validation.verdict import CheckResult, Verdict

_CSS = """
:root { --ink: #1f2430; --soft: #5b6270; --line: #e3e6ec; --good: #1b7f4b; --bad: #c62828; --idle: #7a8190; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 72px; }
header { border-left: 10px solid var(--tone); padding: 2px 0 2px 22px; margin-bottom: 34px; }
h1 { font-size: 2.9rem; line-height: 1.1; margin: 0 0 8px; color: var(--tone); letter-spacing: .01em; }
header p { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 4px; }
h2 .status { font-size: .8rem; vertical-align: 2px; margin-left: 8px; }
.status { font-weight: 650; white-space: nowrap; }
.passed { color: var(--good); } .failed { color: var(--bad); } .idle { color: var(--idle); }
p.what, .note { color: var(--soft); margin: 0 0 8px; overflow-wrap: anywhere; }
.note.failed { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.n { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 10px 0 0; font-size: .95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; min-width: 640px; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""


def write_report(verdict: Verdict, path: str | Path) -> None:
    """Write the report of `verdict` to `path`, at once or not at all.

    Raises DogeExportError where matplotlib is missing or the file cannot be written.
    """
    path = Path(path)
    page = render_html(verdict)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.doge-export-tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DogeExportError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def render_html(verdict: Verdict) -> str:
    """The report as one HTML document."""
    try:
        pictures = plots.overview(verdict.checks)
        sections = "".join(map(_section, verdict.checks))
    except ImportError as error:
        raise DogeExportError(f"the report needs matplotlib ({error}): pip install 'doge-export[export]'") from error
    word = "PASSED" if verdict.passed else "FAILED"
    tone = "var(--good)" if verdict.passed else "var(--bad)"
    rest = " · ".join(verdict.summary_line().split("  ")[1:])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{word}: {escape(str(verdict.reference.get("model", "")))}, validated by doge-export</title>
<style>{_CSS}</style>
</head>
<body><main>
<header style="--tone: {tone}"><h1>{word}</h1><p>{escape(rest)}</p></header>
{_facts(verdict)}
<h2>Checks</h2>
<p class="what">A check passes where every compared number is finite and {escape(str(verdict.tolerance))}: std is the
standard deviation of the reference's numbers, argmax the best token or class.</p>
<div class="scroll">{_table(verdict)}</div>
<div class="scroll">{pictures}</div>
{sections}
</main></body>
</html>
"""


def _facts(verdict: Verdict) -> str:
    reference, subject = verdict.reference, verdict.subject
    revision = f" at {reference['revision']}" if reference.get("revision") else ""
    routing = f", CDMoE routing {subject['cdmoe_routing']}" if subject.get("cdmoe_routing") else ""
    versions = ", ".join(f"{name} {version}" for name, version in subject.get("runtime", {}).items())
    facts = {
        "Checkpoint": f"{reference.get('model')}{revision}",
        "Judged": f"target {subject.get('target')}, {subject.get('task')}, max_length {subject.get('max_length')}"
        f"{routing}; {versions}",
        "Against": f"{reference.get('library')} {reference.get('version')}, {reference.get('attention')} attention, "
        f"{reference.get('dtype')}, torch {reference.get('torch')}",
        **{name: f"sha256 {digest}" for name, digest in subject.get("files", {}).items()},
        "Took": f"{verdict.seconds:.1f} s",
    }
    if reference.get("note"):
        facts["Note"] = reference["note"]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _table(verdict: Verdict) -> str:
    titles = (
        "check",
        "",
        "positions",
        "max |Δ|",
        "mean |Δ|",
        "of std",
        "argmax",
        "near ties",
        "KL mean",
        "KL max",
        "worst: row, position, token",
    )
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, verdict.checks))}</tbody></table>"


def _row(check: CheckResult) -> str:
    metrics = check.metrics
    cells = [escape(check.name), _status(check)]
    if metrics.get("positions"):
        worst = metrics["worst"]
        cells += [
            str(metrics["positions"]),
            _number(metrics["max_abs"]),
            _number(metrics["mean_abs"]),
            _number(metrics["max_abs_over_std"]),
            *ranked_cells(metrics, "kl_mean", "kl_max"),
            f"{worst['row']}, {worst['position']}, {worst['token']}",
        ]
    else:
        cells += [""] * 9
    return "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"


def _section(check: CheckResult) -> str:
    note = f'<p class="note {"failed" if check.passed is False else ""}">{escape(check.note)}</p>' if check.note else ""
    drawn = ""
    if check.comparison is not None and check.comparison.positions:
        drawn = f'<div class="scroll">{plots.by_position(check.name, check.comparison)}</div>'
    what = f'<p class="what">{escape(check.description)}</p>'
    return f"<section><h2>{escape(check.name)} {_status(check)}</h2>{what}{note}{drawn}</section>\n"


def _status(check: CheckResult) -> str:
    tone = {True: "passed", False: "failed", None: "idle"}[check.passed]
    return f'<span class="status {tone}">{check.status.upper()}</span>'


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
