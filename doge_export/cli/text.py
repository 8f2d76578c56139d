"""Text between the terminal and the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from doge_export.errors import DogeExportError


def read_stdin() -> str:
    """All of stdin, without its last line break. Raises DogeExportError when it is not UTF-8."""
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DogeExportError(f"stdin is not UTF-8 text: {error.reason} at byte {error.start}") from error


def show(pieces: Iterator[str], *, silent: bool = False) -> None:
    """Writes pieces to stdout as they come and ends the line, also when it is interrupted."""
    try:
        for piece in pieces:
            if not silent:
                click.echo(piece, nl=False)  # flushes
    finally:
        if not silent:
            click.echo()
