"""Turns on a session: one answer at a time uses its decoder and cache, and whoever else asks for one waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from doge_export.errors import RunFailed

STANDSTILL = 1.0
"""Seconds without a new piece after which a stream that this thread itself left open is not waited for."""

_LOOK = 0.05
"""Seconds between two looks at what is waited for."""

_thread = threading.local()


class SessionBusy(RunFailed):
    """A call found its session in use by another one, and must not wait, or has waited long enough."""


class Turns:
    """A lock that an answer holds from its first token to its last.

    A stream may be advanced by changing threads, as a web server's thread pool does, so the lock belongs to no thread;
    `moved` notes who advanced it last. A plain lock, because giving it back in a destructor must not wait for anything.

    Attributes:
        wait: most seconds that a call waits for its turn; None without end, 0 not at all.
    """

    def __init__(self, wait: float | None = None) -> None:
        self.wait = wait
        self._lock = threading.Lock()
        self._holder: object = None
        self._moves = 0
        self._is_resting = False
        self._alone: object = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the turn in the body.

        Raises:
            SessionBusy: the turn did not come within `wait` seconds; or it is held by a stream of this very thread,
                which nothing would advance while this call waits for it.
        """
        self._take()
        try:
            yield
        finally:
            self._give_back()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the turn as `taken` does, for several steps; meanwhile `is_alone` is True for this thread."""
        with self.taken():
            self._alone = _me()
            try:
                yield
            finally:
                self._alone = None

    @property
    def is_alone(self) -> bool:
        """True in the body of `alone`, for its thread."""
        return self._alone is not None and self._alone is _me()

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Wait until nothing runs; a stream that stands still without a next piece asked for is not waited for."""
        is_taken = self._take(over_streams=True)
        try:
            yield
        finally:
            if is_taken:
                self._give_back()

    def rest(self) -> None:
        """Note that the holder runs nothing until `moved`: a stream whose next piece nobody has asked for."""
        self._is_resting = True

    def moved(self) -> None:
        """Note that this thread advances the holder."""
        self._holder, self._is_resting = _me(), False
        self._moves += 1

    def _take(self, over_streams: bool = False) -> bool:
        """Wait for the lock and return True; False without the lock for a stream at rest, where that is allowed."""
        started = since = time.monotonic()
        seen = self._moves
        while not self._lock.acquire(timeout=_LOOK if self.wait is None else min(_LOOK, max(self.wait, 0))):
            now = time.monotonic()
            if self._moves != seen:
                seen, since = self._moves, now
            is_standing_still = now - since >= STANDSTILL
            if over_streams and self._is_resting and (is_standing_still or self._holder is _me()):
                return False
            if self.wait is not None and now - started >= self.wait:
                raise SessionBusy(
                    f"another answer is being written, and this call waits {self.wait:g} s at most: a session writes "
                    "one at a time; close the stream, wait longer, or give each caller a session.fork()"
                )
            if is_standing_still and self._holder is _me():
                raise SessionBusy(
                    "a stream of this session is open in this thread, and a session writes one answer at a time: "
                    "exhaust it or close() it first, or ask a session.fork()"
                )
        self.moved()
        return True

    def _give_back(self) -> None:
        self._holder, self._is_resting = None, False
        self._lock.release()


def _me() -> object:
    """Return a mark of this thread; unlike its number, no later thread has the same."""
    mark = getattr(_thread, "mark", None)
    if mark is None:
        mark = _thread.mark = object()
    return mark
