"""Messages and progress bars of a run, on stderr, so that stdout has only results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_quiet = False
_verbose = False


def set_quiet(quiet: bool) -> None:
    """Turn all output of this module off or on; errors are printed elsewhere and stay."""
    global _quiet
    _quiet = quiet


def set_verbose(verbose: bool) -> None:
    """Turn the output of `detail` on or off."""
    global _verbose
    _verbose = verbose


def is_verbose() -> bool:
    """Return whether the output of `detail` is on."""
    return _verbose


def log(message: str) -> None:
    """Write a line to stderr."""
    if not _quiet:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def detail(message: str) -> None:
    """Write a line for debugging to stderr, if `set_verbose` turned it on."""
    if _verbose:
        log(message)


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar while the body runs, if stderr is a terminal.

    Args:
        description: text beside the bar.
        total: number of steps; None for a bar without an end.

    Yields:
        `advance(n=1)`, to be called after every n steps.
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
