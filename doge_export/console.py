"""What a run says while it works: lines and bars on stderr, so that stdout holds results only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_quiet = False
_verbose = False


def set_quiet(quiet: bool) -> None:
    """Silence (or restore) everything of this module. Errors are not said here and stay."""
    global _quiet
    _quiet = quiet


def set_verbose(verbose: bool) -> None:
    """Show (or hide) what only somebody who looks for a fault wants to read."""
    global _verbose
    _verbose = verbose


def is_verbose() -> bool:
    """Whether more is asked for than the usual lines."""
    return _verbose


def log(message: str) -> None:
    """One line to stderr."""
    if not _quiet:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def detail(message: str) -> None:
    """One line to stderr where more is asked for."""
    if _verbose:
        log(message)


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar on stderr while the body runs, when stderr is a terminal; else nothing.

    Yields `advance(n=1)`, to be called after each `n` of `total` steps. `total=None` shows a bar without an end.
    """
    if _quiet or not sys.stderr.isatty():
        yield lambda n=1: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)

        def advance(n: int = 1) -> None:
            bar.update(task, advance=n)

        yield advance
