"""Messages and progress bars of a run, on stderr, so that stdout has only results."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

_quiet = False
_verbose = False
_hides_native = False

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and newline; a terminal takes commands that begin with one of them."""


def visible(text: str) -> str:
    """Return a text with its control characters other than newline and tab written out: \\x1b."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class _Guarded:
    """A terminal's stream that writes texts as `visible` shows them."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        self.unguarded.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # whoever finds it would write past this
            raise AttributeError(name)
        return getattr(self.unguarded, name)


@contextlib.contextmanager
def command_streams() -> Iterator[None]:
    """Guard the standard streams while a command runs, which has one thread that writes.

    Stdout and stderr, where they are a terminal, show control characters instead of obeying them, and
    `without_native_stderr` does its work. Names of tensors, manifests and what a model writes may hold sequences that
    move the cursor, change the clipboard or answer in the user's name. A file or a pipe gets every text unchanged.
    """
    global _hides_native
    hid, _hides_native = _hides_native, True
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if stream is not None and not isinstance(stream, _Guarded) and stream.isatty():
            setattr(sys, name, _Guarded(stream))
    try:
        yield
    finally:
        _hides_native = hid
        for name, stream in before.items():
            setattr(sys, name, stream)


@contextlib.contextmanager
def own_bars() -> Iterator[None]:
    """Let a library draw its progress bars on stderr, which takes control characters."""
    guarded = sys.stderr
    if isinstance(guarded, _Guarded):
        sys.stderr = guarded.unguarded
    try:
        yield
    finally:
        sys.stderr = guarded


class _NativeStderr:
    """The descriptor 2, which threads may hide at the same time: it is back when the last one is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hiding = 0
        self._kept: int | None = None

    def hide(self) -> None:
        with self._lock:
            self._hiding += 1
            if self._hiding == 1:
                with contextlib.suppress(OSError):  # stderr is closed, or there are no more files
                    null = os.open(os.devnull, os.O_WRONLY)
                    try:
                        self._kept = os.dup(2)
                        os.dup2(null, 2)
                    finally:
                        os.close(null)

    def show(self) -> None:
        with self._lock:
            self._hiding -= 1
            if self._hiding == 0 and self._kept is not None:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = None


_native_stderr = _NativeStderr()


@contextlib.contextmanager
def without_native_stderr() -> Iterator[None]:
    """Drop what a library of another language writes to stderr in the body, such as the report of a Rust panic."""
    if not _hides_native or _verbose:
        yield
        return
    _native_stderr.hide()
    try:
        yield
    finally:
        _native_stderr.show()


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

    guarded = [name for name in ("stdout", "stderr") if isinstance(getattr(sys, name), _Guarded)]
    stream = sys.stderr.unguarded if isinstance(sys.stderr, _Guarded) else sys.stderr
    with Progress(console=Console(file=stream), transient=True) as bar:
        for name in guarded:  # rich took their place, and takes it back; it lets most control characters through
            setattr(sys, name, _Guarded(getattr(sys, name)))
        task = bar.add_task(description, total=total)

        def advance(n: int = 1) -> None:
            bar.update(task, advance=n)

        yield advance
