"""Messages and progress bars of a run, on stderr, so that stdout has only results."""

from __future__ import annotations

import contextlib
import os
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
        error(message)


def error(message: str) -> None:
    """Write a line to stderr, even if quiet; a stderr that takes nothing, such as a full disk, ends no run."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def open_closed_streams() -> None:
    """Open the null device for standard streams that are closed.

    Else Python has None for them, and the next file that is opened takes the place of one, and its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def forget_stdout() -> None:
    """Let what stdout still holds go to the null device, so that the end of the process does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
