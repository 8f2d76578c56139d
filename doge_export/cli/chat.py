"""`doge-export chat`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export import console
from doge_export.cli.options import (
    check_settings,
    folder_argument,
    generation_options,
    log_notes,
    log_window,
    session_options,
    window_option,
)
from doge_export.cli.text import show
from doge_export.errors import DogeExportError, TooLong
from doge_export.interruption import dealt_with
from doge_export.regular_file import is_there

if TYPE_CHECKING:
    from doge_export.runtime.chat import Chat, Overflow

_COMMAND = re.compile(r"/[A-Za-z]+")
"""A word that is meant as a command; /etc/passwd or 1/2 is none."""

_HELP = """/reset         forget the conversation, keep the system message
/system TEXT   start over with this system message
/help          this list
//TEXT         send a message that begins with /
/exit          leave; so do Ctrl-D and Ctrl-C at the prompt
Ctrl-C         stops an answer"""


@click.command()
@folder_argument
@click.option("--system", metavar="TEXT", help="System message that the conversation starts with.")
@click.option(
    "--context-overflow",
    type=click.Choice(["stop", "drop-oldest"]),
    default="stop",
    show_default=True,
    help="When the conversation gets too long: refuse the message, or forget the oldest turns and say so. The system "
    "message stays.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on with the conversation of this file, if it is there, without reading it again, and write it at the end.",
)
@generation_options
@window_option
@session_options
def command(
    folder: Path,
    system: str | None,
    context_overflow: Overflow,
    state: Path | None,
    window: int | None,
    precision: str | None,
    opening: dict[str, Any],
    stop: tuple[str, ...],
    **settings: Any,
) -> None:
    """Talk with an exported model, turn after turn.

    Each line is a message; /help lists the commands, and // begins a message that begins with /. Messages through a
    pipe are answered line by line, with nothing but the answers on stdout; a line that cannot be answered ends the run
    with exit code 2 and its number.
    """
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session

    check_settings(settings)
    session = load_as(Session, folder, purpose="chat", precision=precision, window=window, **opening)
    log_notes(session)
    log_window(session)
    if state is None or not is_there(state):
        chat = session.chat(system, context_overflow)
    elif system is None:
        chat = session.resume(state, context_overflow)
    else:
        raise DogeExportError(f"{state} holds a conversation with a system message of its own: leave --system out")
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        console.log("/help lists the commands, Ctrl-D leaves")
    try:
        _talk(chat, at_terminal, {"stop": list(stop) or None, **settings})
    finally:
        if state is not None and chat.generation is not None:
            chat.save(state)


def _talk(chat: Chat, at_terminal: bool, settings: dict[str, Any]) -> None:
    """Answer every line until the last one, or /exit."""
    for number, line in enumerate(_typed_lines() if at_terminal else _piped_lines(), 1):
        message = line.strip()
        word, _, rest = message.partition(" ")
        if word == "/exit":
            return
        try:
            if word == "/reset":
                chat.reset()
            elif word == "/system":
                chat.restart(rest.strip() or None)
            elif word == "/help":
                console.log(_HELP)
            elif _COMMAND.fullmatch(word):
                raise DogeExportError(f"there is no command {word}; /help lists them, and // begins a message with /")
            elif message:
                _answer(chat, message[message.startswith("//") :], settings)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            dealt_with()
            console.log("(stopped)")
        except DogeExportError as error:
            if not at_terminal:
                raise type(error)(f"line {number}: {error}") from error
            click.echo(error, err=True)


def _answer(chat: Chat, message: str, settings: dict[str, Any]) -> None:
    dropped = chat.dropped
    try:
        pieces = chat.send(message, **settings)
    except TooLong as error:
        forget = ", --context-overflow drop-oldest forgets old turns" if len(chat.messages) > 1 else ""
        raise TooLong(f"{error} (/reset starts over{forget})") from error
    if chat.dropped > dropped:
        turns = chat.dropped - dropped
        console.log(f"note: the conversation is too long: forgot the oldest {turns} turn{'s'[: turns > 1]}")
    show(pieces)
    if chat.is_full:
        console.log("note: the answer was cut: the conversation is as long as the export holds (/reset starts over)")


def _typed_lines() -> Iterator[str]:
    """Yield lines typed at a prompt until Ctrl-D or Ctrl-C, with a history if there is readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it once it is imported)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            dealt_with()
            click.echo()
            return


def _piped_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer):
        yield line.decode("utf-8" if number else "utf-8-sig", errors="replace")
