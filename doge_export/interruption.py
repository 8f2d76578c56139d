"""The signal that is to end this run, for code that another language calls: no exception passes through that."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

_arrived: list[int] = []
_deferrals = 0


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let signals that arrive in the body be remembered only, and raise behind it what they would have raised.

    Raises:
        KeyboardInterrupt, SystemExit: see `check`; whatever the body raised.
    """
    global _deferrals
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
        check()


def is_deferred() -> bool:
    """Return whether a signal that arrives now must not raise."""
    return _deferrals > 0


def remember(number: int) -> None:
    """Remember a signal that arrived."""
    _arrived.append(number)


def pending() -> int | None:
    """Return the signal that arrived last, unless it was dealt with; None for none."""
    return _arrived[-1] if _arrived else None


def dealt_with() -> None:
    """Forget the signals that arrived: the run goes on."""
    _arrived.clear()


def check() -> None:
    """Raise once more what a signal raised, where a library dropped it.

    Raises:
        KeyboardInterrupt: SIGINT is pending.
        SystemExit: another signal is, with 128 and its number.
    """
    number = pending()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number is not None:
        sys.exit(128 + number)
