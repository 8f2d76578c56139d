"""`doge-export eval`: perplexity of a folder on the user's own text, and accuracy on the user's questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli.options import PATH, folder_argument, json_option, session_options
from doge_export.cli.render import columns, echo_json
from doge_export.console import log
from doge_export.package.atomic_file import written_file
from doge_export.paths import check_apart, check_file, read_text

if TYPE_CHECKING:
    from doge_export.evaluation.choices import ChoicesScore
    from doge_export.evaluation.perplexity import TextScore
    from doge_export.evaluation.windows import WindowsScore


@click.command()
@folder_argument
@click.option("--text", type=PATH, metavar="FILE", help="Perplexity of this UTF-8 text of at most 64 MiB.")
@click.option(
    "--length",
    type=int,
    metavar="N",
    help="Tokens read at once. [default: as many as it holds, up to 2048; with --window eight times keep_window_size]",
)
@click.option("--stride", type=int, metavar="N", help="Tokens that they move on by. [default: half of them]")
@click.option(
    "--window",
    "windows",
    type=int,
    multiple=True,
    metavar="N",
    help="Compare a window of N keys a token, fewer than keep_window_size, with the full one: perplexity and KL by "
    "position, speed, memory. May be given several times.",
)
@click.option("--plot", type=PATH, metavar="FILE", help="With --window: draw them by position, as .svg or .png.")
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
    length: int | None,
    stride: int | None,
    windows: tuple[int, ...],
    plot: Path | None,
    choices: Path | None,
    details: Path | None,
    precision: str | None,
    opening: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure perplexity and accuracy.

    Perplexity is measured on a sliding part of the text: each token counts once, with at least length - stride tokens
    before it. With --window the text is cut into parts instead, and each is read from its beginning. Choices are scored
    as lm-evaluation-harness scores them: acc by the likelihood behind "CONTEXT\\n\\nQUESTION ", acc_norm and acc_bytes
    by the likelihood per character and per byte, exact_match by the answer that greedy decoding would write.
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
    if text is None and (length is not None or stride is not None or windows):
        raise click.UsageError("--length, --stride and --window are of --text; give it too.")
    if windows and stride is not None:
        raise click.UsageError(
            "--stride is of the perplexity without --window, and tokens read at once are --length; leave one out."
        )
    if plot is not None and not windows:
        raise click.UsageError("--plot is of --window; give it too.")
    if plot is not None:
        from doge_export.benchmark.plot import plot_path

        plot = plot_path(plot)
        check_apart({"--plot": plot}, {"FOLDER": folder, "--choices": choices, "--text": text})
    if details is not None:
        check_file("--details", details)
        check_apart({"--details": details}, {"FOLDER": folder, "--choices": choices, "--text": text})
    content = None if text is None else read_text(text, LONGEST_TEXT)
    questions = None if choices is None else read_questions(choices)
    if windows and length is None:
        log("note: --window is the number of keys that a token sees; the number of tokens read at once is --length")
    session = load_as(Session, folder, purpose="eval", precision=precision, **opening)
    graph = session.manifest.graphs[graph_file(folder, session.manifest, precision)]
    results: dict[str, Any] = {"folder": str(folder), "precision": graph.precision}
    if content is not None and windows:
        from doge_export.evaluation.windows import evaluate_windows

        results["windows"] = evaluate_windows(session, content, windows, length=length)
    elif content is not None:
        results["text"] = evaluate_text(session, content, window=length, stride=stride)
    if questions is not None:
        results["choices"] = evaluate_choices(session, questions)
    if details is not None:
        lines = (json.dumps(item.to_dict(), ensure_ascii=False) for item in results["choices"].answers)
        with written_file("--details", details) as stream:
            stream.writelines(f"{line}\n".encode() for line in lines)
    if plot is not None:
        from doge_export.benchmark.window_plot import write_window_plot

        write_window_plot(results["windows"], plot)
    if as_json:
        echo_json({name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in results.items()})
        return
    if "text" in results:
        click.echo(_of_text(results["text"]))
    if "windows" in results:
        click.echo(_of_windows(results["windows"]))
    if "choices" in results:
        click.echo(_of_choices(results["choices"]))


def _of_text(score: TextScore) -> str:
    rows = [
        ("perplexity", f"{score.perplexity:.4f}"),
        ("nats per token", f"{score.nats_per_token:.4f}"),
        ("bits per byte", f"{score.bits_per_byte:.4f}"),
        ("tokens", f"{score.tokens} ({score.bytes} bytes), length {score.window}, stride {score.stride}"),
    ]
    return columns(rows, indent=0)


def _of_windows(score: WindowsScore) -> str:
    rows: list[tuple[str, ...]] = [
        ("perplexity", *(f"window {each.window}{' (trained)' * each.trained}" for each in score.windows)),
    ]
    for parts in zip(*(each.stretches for each in score.windows), strict=True):
        shown = (
            ("" if part.perplexity is None else f"{part.perplexity:.4f}")
            + ("" if each.trained else f", KL {part.kl_mean:.2g}")
            for each, part in zip(score.windows, parts, strict=True)
        )
        rows.append((f"  tokens {parts[0].first}-{parts[0].end - 1}", *shown))
    rows.append(("tokens/s", *(f"{each.tokens_per_second:.0f}" for each in score.windows)))
    rows.append(
        ("caches", *("" if each.cache_bytes is None else f"{each.cache_bytes / 1e6:.2f} MB" for each in score.windows))
    )
    lengths = f"{score.rows} part{'s'[: score.rows > 1]} of up to {score.length} tokens, by {score.computed_by}"
    return f"{columns(rows, indent=0)}\n{lengths}; a window below the trained one is an approximation"


def _of_choices(score: ChoicesScore) -> str:
    rows = [
        (name, f"{measure['value']:.4f}", "" if measure["stderr"] is None else f"+- {measure['stderr']:.4f}")
        for name, measure in score.measures.items()
    ]
    cut = f"{score.truncated} cut at their start" if score.truncated else ""
    return columns([*rows, ("questions", str(len(score.answers)), cut)], indent=0)
