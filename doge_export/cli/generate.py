"""`doge-export generate`: one prompt, one answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from doge_export import console
from doge_export.cli.options import (
    check_settings,
    folder_argument,
    generation_options,
    json_option,
    log_notes,
    log_window,
    session_options,
    window_option,
)
from doge_export.cli.render import echo_json
from doge_export.cli.text import read_stdin, show


@click.command()
@folder_argument
@click.argument("prompt")
@generation_options
@click.option("--chat", is_flag=True, help="Put the prompt into the chat template, as a user's message.")
@click.option("--system", metavar="TEXT", help="System message before the prompt; implies --chat.")
@click.option("--stream/--no-stream", default=True, help="Print the text as it comes, or at the end. [default: stream]")
@window_option
@session_options
@json_option
def command(
    folder: Path,
    prompt: str,
    chat: bool,
    system: str | None,
    stream: bool,
    window: int | None,
    precision: str | None,
    opening: dict[str, Any],
    as_json: bool,
    stop: tuple[str, ...],
    **settings: Any,
) -> None:
    """Continue a prompt.

    The new text goes to stdout as it comes, without the prompt. With - as PROMPT, the prompt is read from stdin,
    without its last line break.
    """
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session

    check_settings(settings)
    text = read_stdin() if prompt == "-" else prompt
    request: Any = text
    if chat or system is not None:
        request = [{"role": "user", "content": text}]
        if system is not None:
            request.insert(0, {"role": "system", "content": system})
    session = load_as(Session, folder, purpose="generate", precision=precision, window=window, **opening)
    log_notes(session)
    log_window(session)
    started = time.perf_counter()
    pieces = session.stream(request, stop=list(stop) or None, **settings)
    show(_collected(pieces) if as_json or not stream else pieces, silent=as_json)
    answer = pieces.generation
    seconds = time.perf_counter() - started
    if as_json:
        echo_json(dataclasses.asdict(answer))
    if not answer.text and answer.finish_reason == "eos":
        hint = "" if request is not text else "; --chat puts the prompt into the chat template"
        console.log(f"the answer is empty: the model ended it at once{hint}")
    if settings["json_schema"] is not None and answer.finish_reason != "eos":
        console.log(f"note: the JSON is not complete: the answer ended by {answer.finish_reason} (--max-new-tokens)")
    console.detail(
        f"{len(answer.prompt_token_ids)} tokens read, {len(answer.token_ids)} written in {seconds:.2f} s; "
        f"ended by {answer.finish_reason}"
    )


def _collected(pieces: Iterator[str]) -> Iterator[str]:
    yield "".join(pieces)
