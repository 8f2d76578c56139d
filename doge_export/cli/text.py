"""Text between the terminal and the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from doge_export.errors import DogeExportError


def read_stdin() -> str:
    """All of stdin, without its last line break. Raises DogeExportError when it is not UTF-8."""
    return _decoded(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")


def given_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of a command: its arguments, else the lines of a file, else those of stdin.

    A line break at the end of the last line is no further line. Raises DogeExportError when what is read is not UTF-8,
    click.UsageError when there is nothing to read.
    """
    if texts:
        if file is not None:
            raise click.UsageError("--file FILE takes the place of TEXT; drop one of them.")
        return list(texts)
    if file is not None and str(file) != "-":
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error
    elif file is None and sys.stdin.isatty():
        raise click.UsageError("give at least one TEXT, --file FILE, or lines on stdin.")
    else:
        content = sys.stdin.buffer.read()
    lines = _decoded(content, str(file or "stdin")).removesuffix("\n").split("\n") if content else []
    return [line.removesuffix("\r") for line in lines]


def one_line(text: str, width: int = 60) -> str:
    """`text` for a table: its first characters, without what would move the cursor."""
    visible = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
    return visible if len(visible) <= width else f"{visible[: width - 1]}…"


def _decoded(content: bytes, origin: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{origin} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def show(pieces: Iterator[str], *, silent: bool = False) -> None:
    """Writes pieces to stdout as they come and ends the line, also when it is interrupted."""
    try:
        for piece in pieces:
            if not silent:
                click.echo(piece, nl=False)  # flushes
    finally:
        if not silent:
            click.echo()
