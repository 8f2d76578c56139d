"""Input and output of text on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from doge_export.errors import DogeExportError
from doge_export.paths import read_text


def read_stdin() -> str:
    """Read all of stdin, without its last line break and a byte order mark at its beginning.

    Raises:
        DogeExportError: it is not UTF-8.
    """
    return _stdin().removesuffix("\n").removesuffix("\r")


def given_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Return the texts of a command: its arguments, or else the lines of a file, or else the lines of stdin.

    A line break at the end of the last line starts no further line.

    Args:
        texts: arguments of the command.
        file: file with a text on each line; "-" for stdin.

    Raises:
        DogeExportError: the file cannot be read, or it or stdin is not UTF-8.
        click.UsageError: there are both arguments and a file, or neither and stdin is a terminal.
    """
    if texts:
        if file is not None:
            raise click.UsageError("--file FILE takes the place of TEXT; drop one of them.")
        return list(texts)
    if file is not None and str(file) != "-":
        content = read_text(file)
    elif file is None and sys.stdin.isatty():
        raise click.UsageError("give at least one TEXT, --file FILE, or lines on stdin.")
    else:
        content = _stdin()
    lines = content.removesuffix("\n").split("\n") if content else []
    return [line.removesuffix("\r") for line in lines]


def one_line(text: str, width: int = 60) -> str:
    """Shorten a text to `width` characters for a table, without characters that would move the cursor."""
    visible = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
    return visible if len(visible) <= width else f"{visible[: width - 1]}…"


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DogeExportError(f"stdin is not UTF-8 text: {error.reason} at byte {error.start}") from error


def show(pieces: Iterator[str], *, silent: bool = False) -> None:
    """Write pieces of text to stdout as they come and end the line, also after an interruption.

    Args:
        pieces: pieces of an answer.
        silent: take the pieces without writing them.
    """
    try:
        for piece in pieces:
            if not silent:
                click.echo(piece, nl=False)  # flushes stdout, unlike print
    finally:
        if not silent:
            click.echo()
