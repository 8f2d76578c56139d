"""`doge-export eval`: perplexity of a folder on the user's own text, and accuracy on the user's questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli.options import PATH, folder_argument, json_option, session_options
from doge_export.cli.render import columns, echo_json
from doge_export.package.atomic_file import written_file
from doge_export.paths import check_apart, check_file, read_text

if TYPE_CHECKING:
    from doge_export.evaluation.choices import ChoicesScore
    from doge_export.evaluation.perplexity import TextScore


@click.command()
@folder_argument
@click.option("--text", type=PATH, metavar="FILE", help="Perplexity of this UTF-8 text of at most 64 MiB.")
@click.option("--window", type=int, metavar="N", help="Tokens seen at once. [default: as many as it holds, up to 2048]")
@click.option("--stride", type=int, metavar="N", help="Tokens that the window moves by. [default: half of it]")
@click.option(
    "--choices",
    type=PATH,
    metavar="FILE.jsonl",
    help='Multiple choice: lines of {"question", "choices", "answer": index or text, "context": optional}.',
)
@click.option("--details", type=PATH, metavar="FILE", help="Write a JSON line for each question.")
@session_options
@json_option
def command(
    folder: Path,
    text: Path | None,
    window: int | None,
    stride: int | None,
    choices: Path | None,
    details: Path | None,
    precision: str | None,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure perplexity and accuracy.

    Perplexity is measured with a sliding window: each token counts once, with at least window - stride tokens before
    it. Choices are scored as lm-evaluation-harness scores them: acc by the likelihood behind
    "CONTEXT\\n\\nQUESTION ", acc_norm and acc_bytes by the likelihood per character and per byte, exact_match by the
    answer that greedy decoding would write.
    """
    from doge_export.evaluation.choices import evaluate_choices
    from doge_export.evaluation.perplexity import LONGEST_TEXT, evaluate_text
    from doge_export.evaluation.questions import read_questions
    from doge_export.runtime.graph import graph_file
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session

    if text is None and choices is None:
        raise click.UsageError("give --text FILE, --choices FILE.jsonl, or both.")
    if choices is None and details is not None:
        raise click.UsageError("--details is of --choices; give both.")
    if text is None and (window is not None or stride is not None):
        raise click.UsageError("--window and --stride are of --text; give it too.")
    if details is not None:
        check_file("--details", details)
        check_apart({"--details": details}, {"FOLDER": folder, "--choices": choices, "--text": text})
    content = None if text is None else read_text(text, LONGEST_TEXT)
    questions = None if choices is None else read_questions(choices)
    session = load_as(Session, folder, purpose="eval", precision=precision, **opening)
    graph = session.manifest.graphs[graph_file(folder, session.manifest, precision)]
    results: dict[str, Any] = {"folder": str(folder), "precision": graph.precision}
    if content is not None:
        results["text"] = evaluate_text(session, content, window=window, stride=stride)
    if questions is not None:
        results["choices"] = evaluate_choices(session, questions)
    if details is not None:
        lines = (json.dumps(item.to_dict(), ensure_ascii=False) for item in results["choices"].answers)
        with written_file("--details", details) as stream:
            stream.writelines(f"{line}\n".encode() for line in lines)
    if as_json:
        echo_json({name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in results.items()})
        return
    if "text" in results:
        click.echo(_of_text(results["text"]))
    if "choices" in results:
        click.echo(_of_choices(results["choices"]))


def _of_text(score: TextScore) -> str:
    rows = [
        ("perplexity", f"{score.perplexity:.4f}"),
        ("nats per token", f"{score.nats_per_token:.4f}"),
        ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ("tokens", f"{score.tokens} ({score.bytes} bytes), window {score.window}, stride {score.stride}"),
    ]
    return columns(rows, indent=0)


def _of_choices(score: ChoicesScore) -> str:
    rows = [
        (name, f"{measure['value']:.4f}", "" if measure["stderr"] is None else f"+- {measure['stderr']:.4f}")
        for name, measure in score.measures.items()
    ]
    cut = f"{score.truncated} cut at their start" if score.truncated else ""
    return columns([*rows, ("questions", str(len(score.answers)), cut)], indent=0)
