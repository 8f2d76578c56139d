"""Signals that end a run raise exceptions in it, so that it removes half-written folders on the way out.

A library may turn such an exception into one of its own; `interruption` remembers the signal until it is dealt with.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from doge_export.interruption import dealt_with, is_deferred, remember

_AGAIN_AFTER = 0.05
"""Seconds until a signal is sent again whose exception was dropped."""


@contextlib.contextmanager
def unwinding_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit(128 + number) in the body, and SIGINT KeyboardInterrupt.

    A handler may run inside a destructor or a weak reference's callback, where Python drops exceptions (seen with
    torch.export, which makes many of them). A signal whose exception is dropped is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    dealt_with()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    report = sys.unraisablehook

    def resend_or_report(dropped: Any, /) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            number: int = signal.SIGINT
        elif issubclass(dropped.exc_type, SystemExit) and dropped.exc_value.code in (128 + n for n in numbers):
            number = dropped.exc_value.code - 128
        else:
            report(dropped)
            return
        # From another thread and later: raised here, the exception would be dropped once more.
        threading.Timer(_AGAIN_AFTER, _send_to_main_thread, [number]).start()

    sys.unraisablehook = resend_or_report
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, a shell's & SIGINT
            signal.signal(number, _leave)
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in previous.items():
            signal.signal(number, handler)


def _send_to_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        # Addressed to that thread, so that it wakes from a system call.
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _leave(number: int, frame: FrameType | None) -> None:
    remember(number)
    if is_deferred():
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
