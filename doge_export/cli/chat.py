"""`doge-export chat`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export import console
from doge_export.cli.options import folder_argument, generation_options, session_options
from doge_export.cli.text import show
from doge_export.errors import DogeExportError

if TYPE_CHECKING:
    from doge_export.runtime.chat import Chat
    from doge_export.runtime.session import Session

_HELP = """/reset         forget the conversation, keep the system message
/system TEXT   start over with this system message
/help          this list
/exit          leave; so do Ctrl-D and Ctrl-C at the prompt
Ctrl-C         stops an answer"""


@click.command()
@folder_argument
@click.option("--system", metavar="TEXT", help="System message that the conversation starts with.")
@generation_options
@session_options
def command(
    folder: Path,
    system: str | None,
    precision: str | None,
    opening: dict[str, Any],
    stop: tuple[str, ...],
    **settings: Any,
) -> None:
    """Talk with an exported model, turn after turn.

    Each line is a message; /help lists the commands. Messages through a pipe are answered line by line, with
    nothing but the answers on stdout.
    """
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session

    session = load_as(Session, folder, purpose="chat", precision=precision, **opening)
    chat = session.chat(system)
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if at_terminal:
        console.log("/help lists the commands, Ctrl-D leaves")
    for line in _typed_lines() if at_terminal else _piped_lines():
        word, _, rest = line.strip().partition(" ")
        if word == "/exit":
            return
        if word in ("/reset", "/system"):
            chat = _restarted(session, chat, word, rest.strip())
        elif word == "/help":
            console.log(_HELP)
        elif word.startswith("/"):
            console.log(f"there is no command {word}; /help lists them")
        elif word:
            _answer(chat, line.strip(), at_terminal, {"stop": list(stop), **settings})


def _restarted(session: Session, chat: Chat, word: str, text: str) -> Chat:
    if word == "/system":
        return session.chat(text or None)
    chat.reset()
    return chat


def _answer(chat: Chat, message: str, at_terminal: bool, settings: dict[str, Any]) -> None:
    if not at_terminal:
        show(chat.send(message, **settings))
        return
    try:
        show(chat.send(message, **settings))
    except KeyboardInterrupt:
        console.log("(stopped)")
    except DogeExportError as error:
        click.echo(f"{error} (/reset starts over)", err=True)


def _typed_lines() -> Iterator[str]:
    """Yield lines typed at a prompt until Ctrl-D or Ctrl-C, with a history if there is readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it once it is imported)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", errors="replace")
