"""The validation report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.package.atomic_file import written_file
from doge_export.validation import plots
from doge_export.validation.verdict import ranked_cells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from doge_export.validation.verdict import CheckResult, Verdict

_CSS = """
:root { --ink: #1f2430; --soft: #5b6270; --line: #e3e6ec; --good: #1b7f4b; --bad: #c62828; --idle: #6b7280; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1600px; margin: 0 auto; padding: 40px 24px 72px; }
main > * { max-width: 1120px; }
main > .checks { max-width: none; }
header { border-left: 10px solid var(--tone); padding: 2px 0 2px 22px; margin-bottom: 34px; }
h1 { font-size: 2.9rem; line-height: 1.1; margin: 0 0 8px; color: var(--tone); letter-spacing: .01em; }
header p { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
header p.soft { color: var(--soft); font-size: .95rem; }
h2 { font-size: 1.35rem; margin: 44px 0 6px; }
h3 { font-size: 1.15rem; margin: 0 0 4px; }
h3 .status { font-size: .8rem; vertical-align: 1px; margin-left: 8px; }
.status { font-weight: 650; white-space: nowrap; }
.passed { color: var(--good); } .failed { color: var(--bad); } .idle { color: var(--idle); }
p.what, .note { color: var(--soft); margin: 0 0 8px; overflow-wrap: anywhere; }
.note.failed { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 14px 0 26px; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 0 7px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; line-height: 1.3; }
thead th.group { text-align: center; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; } td.word { white-space: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 10px 0 0; font-size: .95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.checks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 700px), 1fr)); gap: 40px 48px;
  margin-top: 18px; }
section { min-width: 0; max-width: 880px; }
svg { display: block; width: 100%; height: auto; min-width: 560px; max-width: 880px; }
svg text { font-family: inherit !important; }
@media (max-width: 1000px) {
  table { font-size: .77rem; }
  th, td { padding-left: 7px; }
}
"""

_NUMBERS = {
    "text-generation": "logits",
    "text-classification": "scores",
    "feature-extraction": "hidden states",
}
"""What is compared, by task."""

_NOT_FINITE = "not finite"


def write_report(verdict: Verdict, path: str | Path) -> None:
    """Write the report of `verdict` to `path`, at once or not at all.

    Raises:
        DogeExportError: matplotlib is missing, or the file cannot be written.
    """
    page = render_html(verdict)
    with written_file("the report", Path(path)) as stream:
        stream.write(page.encode("utf-8"))


def render_html(verdict: Verdict) -> str:
    """The report as one HTML document."""
    try:
        pictures = plots.overview(verdict.checks)
        sections = "".join(map(_section, verdict.checks))
    except ImportError as error:
        raise DogeExportError(f"the report needs matplotlib ({error}): {install_command('export')}") from error
    word = "PASSED" if verdict.passed else "FAILED"
    tone = "var(--good)" if verdict.passed else "var(--bad)"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{word}: {escape(str(verdict.reference.get("model", "")))}, validated by doge-export</title>
<style>{_CSS}</style>
</head>
<body><main>
<header style="--tone: {tone}"><h1>{word}</h1>{_headline(verdict)}</header>
{_facts(verdict)}
<h2>Results</h2>
{_meanings(verdict)}
<div class="scroll">{_table(verdict)}</div>
<div class="scroll">{pictures}</div>
<h2>Checks one by one</h2>
<p class="what">Differences, counts and divergences have logarithmic scales; the lowest label, marked ≤, holds zero too.
A dashed red line is the largest difference that passes. All rows of a batch share one axis of positions.</p>
<div class="checks">{sections}</div>
</main></body>
</html>
"""


def _headline(verdict: Verdict) -> str:
    """The verdict in a sentence, and below it the worst numbers of all checks."""
    total = len(verdict.checks)
    names = {passed: [check.name for check in verdict.checks if check.passed is passed] for passed in (True, False)}
    failed, idle = names[False], total - len(names[True]) - len(names[False])
    if verdict.passed:
        said = "The export computes what the checkpoint computes in PyTorch."
    elif failed:
        said = "The export does not compute what the checkpoint computes in PyTorch."
    else:
        said = "No check could compare the export with PyTorch."
    counts = f" {len(names[True])} of {total} checks passed"
    counts += f", {len(failed)} failed ({', '.join(failed)})" if failed else ""
    counts += f", {idle} not run" if idle else ""
    run = [check.metrics for check in verdict.checks if check.metrics.get("positions")]
    worst = []
    if run and all(metrics["finite"] for metrics in run):
        largest = max(metrics["max_abs"] for metrics in run)
        ratio = max(metrics["max_abs_over_std"] or 0.0 for metrics in run)
        worst.append(f"largest difference {_number(largest)} ({_number(ratio)} standard deviations)")
        ranked = [metrics for metrics in run if "kl_max" in metrics]
        if ranked:
            positions = sum(metrics["positions"] for metrics in ranked)
            agree = sum(round(metrics["argmax_agreement"] * metrics["positions"]) for metrics in ranked)
            worst.append(f"same argmax at {agree} of {positions} positions")
            worst.append(f"largest KL divergence {_number(max(metrics['kl_max'] for metrics in ranked))} nats")
    elif run:
        worst.append("some numbers are not finite (NaN or infinity)")
    line = f'<p class="soft">{escape(" · ".join(worst))}</p>' if worst else ""
    return f"<p>{escape(said + counts)}.</p>{line}"


def _facts(verdict: Verdict) -> str:
    reference, subject = verdict.reference, verdict.subject
    revision = f" at {reference['revision']}" if reference.get("revision") else ""
    routing = f", CDMoE routing {subject['cdmoe_routing']}" if subject.get("cdmoe_routing") else ""
    versions = ", ".join(f"{name} {version}" for name, version in subject.get("runtime", {}).items())
    facts = {
        "Checkpoint": f"{reference.get('model')}{revision}",
        "Export": f"{subject.get('task')} for {subject.get('target')}, max_length {subject.get('max_length')}{routing}"
        + (f"; run by {versions}" if versions else ""),
        "Reference": f"{reference.get('library')} {reference.get('version')} on torch {reference.get('torch')}, "
        f"{reference.get('attention')} attention, {reference.get('dtype')}",
        "Positions": f"{verdict.reach}; nothing is compared behind it",
        **{name: f"sha256 {digest}" for name, digest in subject.get("files", {}).items()},
        "Time": f"{verdict.seconds:.1f} s",
    }
    if reference.get("note"):
        facts["Note"] = reference["note"]
    return _definitions(facts)


def _meanings(verdict: Verdict) -> str:
    """What the columns of the table mean, and what passes."""
    tolerance = verdict.tolerance
    numbers = _NUMBERS.get(str(verdict.subject.get("task")), "numbers")
    what = (
        "Each check gives the same tokens to the export and to the reference, and compares "
        f"the {numbers} they compute at each position. A check passes when everything below holds."
    )
    if verdict.subject.get("task") == "text-generation":
        what += " Greedy generation must also choose the same tokens, up to a near tie."
    meanings = {
        "difference": f"How far the export's {numbers} are from the reference's. The largest is at most "
        f"{tolerance.logits:g} of std, the standard deviation of the reference's {numbers}. NaN and infinity fail.",
    }
    if _ranked(verdict):
        best = "class" if verdict.subject.get("task") == "text-classification" else "token"
        tie = f"{tolerance.near_tie_of_std:g} of std" if tolerance.near_tie_of_std else f"{tolerance.near_tie:g}"
        most = ""
        if tolerance.disagreement_share is not None:
            most = f"; it may be another at {100 * tolerance.disagreement_share:g} % of a check's positions, or at one"
        limit = (
            f" Its mean is at most {tolerance.mean_kl:g}."
            if tolerance.mean_kl < float("inf")
            else " It is shown for information and has no limit."
        )
        meanings |= {
            "argmax": f"The {best} with the highest value is the same at each position. A near tie is excepted: "
            f"a position where the reference's two highest values are at most {tie} apart{most}.",
            "KL": f"Kullback-Leibler divergence of the export's probabilities from the reference's, in nats.{limit}",
        }
    return f'<p class="what">{escape(what)}</p>{_definitions(meanings)}'


def _definitions(entries: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items())
    return f"<dl>{rows}</dl>"


def _ranked(verdict: Verdict) -> bool:
    """Whether any check has an argmax and a divergence to show."""
    return any("argmax_agreement" in check.metrics for check in verdict.checks)


def _table(verdict: Verdict) -> str:
    ranked = _ranked(verdict)
    groups: dict[str, tuple[str, ...]] = {"difference": ("max", "mean", "max / std")}
    if ranked:
        groups |= {"argmax": ("same", "near ties"), "KL, nats": ("mean", "max")}
    groups["max at"] = ("row, position, token id",)
    above = "".join(f'<th class="group" colspan="{len(titles)}">{group}</th>' for group, titles in groups.items())
    below = "".join(f'<th class="n">{title}</th>' for titles in groups.values() for title in titles)
    head = (
        '<tr><th rowspan="2">check</th><th rowspan="2">result</th><th rowspan="2" class="n">positions</th>'
        f"{above}</tr><tr>{below}</tr>"
    )
    rows = "".join(_row(check, ranked) for check in verdict.checks)
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _row(check: CheckResult, ranked: bool) -> str:
    metrics = check.metrics
    cells = [""] * (9 if ranked else 5)
    if metrics.get("positions"):
        worst = metrics["worst"]
        cells = [
            str(metrics["positions"]),
            _number(metrics["max_abs"]),
            _number(metrics["mean_abs"]),
            _number(metrics["max_abs_over_std"]),
            *(_ranked_cells(metrics) if ranked else ()),
            f"{worst['row']}, {worst['position']}, {worst['token']}",
        ]
    numbers = "".join(f'<td class="n{" word" if cell == _NOT_FINITE else ""}">{cell}</td>' for cell in cells)
    return f"<tr><td>{escape(check.name)}</td><td>{_status(check)}</td>{numbers}</tr>"


def _ranked_cells(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    if "kl_max" not in metrics:
        return ("",) * 4
    return (*ranked_cells(metrics), _number(metrics["kl_mean"]), _number(metrics["kl_max"]))


def _section(check: CheckResult) -> str:
    note = f'<p class="note {"failed" if check.passed is False else ""}">{escape(check.note)}</p>' if check.note else ""
    drawn = ""
    if check.comparison is not None and check.comparison.positions:
        drawn = f'<div class="scroll">{plots.by_position(check.name, check.comparison)}</div>'
    what = f'<p class="what">{escape(check.description)}</p>'
    return f"<section><h3>{escape(check.name)} {_status(check)}</h3>{what}{note}{drawn}</section>\n"


def _status(check: CheckResult) -> str:
    tone = {True: "passed", False: "failed", None: "idle"}[check.passed]
    return f'<span class="status {tone}">{check.status.upper()}</span>'


def _number(value: float | None) -> str:
    return _NOT_FINITE if value is None else f"{value:.1e}" if value else "0"
