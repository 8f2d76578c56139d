"""Turns on a session: one answer at a time uses its decoder and cache, and whoever else asks for one waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from doge_export.errors import DogeExportError, RunFailed

STANDSTILL = 1.0
"""Seconds without a new piece after which a stream that this thread itself left open is not waited for."""

_LOOK = 0.05
"""Seconds between two looks at what is waited for."""

_CLOSED = "this session was closed; load its folder again"

_thread = threading.local()


def _never() -> bool:
    return False


class SessionBusy(RunFailed):
    """A call found its session in use by another one, and must not wait, or has waited long enough."""


class Turns:
    """A lock that an answer holds from its first token to its last.

    A stream may be advanced by changing threads, as a web server's thread pool does, so the lock belongs to no thread.
    A stream is a thread's own if that thread made it and no other one ever advanced it: only then is it certain enough
    that nothing advances it while the thread waits. A plain lock, because giving it back in a destructor must not wait
    for anything.

    Attributes:
        wait: most seconds that a call waits for its turn; None without end, 0 not at all.
    """

    def __init__(self, wait: float | None = None) -> None:
        self.wait = wait
        self._lock = threading.Lock()
        self._owner: object = None
        self._moved_at = 0.0
        self._is_resting = False
        self._alone: object = None
        self._is_closed = False
        self._going_on = threading.Lock()  # between a stream that goes on and a session that closes beside it
        self._closing = threading.Lock()  # between two threads that close the session

    @contextlib.contextmanager
    def taken(self, owner: object = None, is_given_up: Callable[[], bool] = _never) -> Iterator[bool]:
        """Hold the turn in the body.

        Args:
            owner: mark of the thread that made what takes the turn (`this_thread`); by default of this one.
            is_given_up: looked at while the call waits; once it returns True, the body runs without the turn.

        Yields:
            True; False without the turn.

        Raises:
            SessionBusy: the turn did not come within `wait` seconds; or it is held by a stream of this very thread,
                which nothing would advance while this call waits for it.
            DogeExportError: the session was closed.
        """
        is_taken = self._take(owner=owner, is_given_up=is_given_up)
        try:
            yield is_taken
        finally:
            if is_taken:
                self._give_back()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the turn as `taken` does, for several steps; meanwhile `is_alone` is True for this thread."""
        with self.taken():
            self._alone = this_thread()
            try:
                yield
            finally:
                self._alone = None

    @property
    def is_alone(self) -> bool:
        """True in the body of `alone`, for its thread."""
        return self._alone is not None and self._alone is this_thread()

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Wait until nothing runs, and let nothing run from then on.

        A stream that stands still without a next piece asked for is not waited for, and cannot go on.
        """
        is_taken = self._take(closing=True)
        try:
            with self._closing:
                yield
        finally:
            if is_taken:
                self._give_back()

    @contextlib.contextmanager
    def held(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock of a stream in the body, which another thread may hold that waits for its turn.

        Raises:
            SessionBusy: the turn is held by a stream of this very thread, as for `taken`.
        """
        started = time.monotonic()
        while not lock.acquire(timeout=_LOOK):
            self._refuse_own(started)
        try:
            yield
        finally:
            lock.release()

    def rest(self) -> None:
        """Note that the holder runs nothing until `moved`: a stream whose next piece nobody has asked for."""
        self._moved_at = time.monotonic()
        self._is_resting = True

    def moved(self) -> None:
        """Note that this thread advances the holder.

        Raises:
            DogeExportError: the session was closed.
        """
        with self._going_on:
            if self._is_closed:
                raise DogeExportError(_CLOSED)
            self._is_resting = False
        self._moved_at = time.monotonic()
        if self._owner is not this_thread():
            self._owner = None

    def _take(self, closing: bool = False, owner: object = None, is_given_up: Callable[[], bool] = _never) -> bool:
        """Wait for the lock and return True.

        Returns:
            False without the lock: what waits was given up, or closes the session beside a stream at rest.
        """
        started = time.monotonic()
        while not self._lock.acquire(timeout=_LOOK if self.wait is None else min(_LOOK, max(self.wait, 0))):
            if is_given_up():
                return False
            if self._is_closed and not closing:  # maybe beside a stream that never ends
                raise DogeExportError(_CLOSED)
            if closing and (self._is_own() or self._stands_still(started)) and self._close(resting=True):
                return False
            if self.wait is not None and time.monotonic() - started >= self.wait:
                raise SessionBusy(
                    f"another answer is being written, and this call waits {self.wait:g} s at most: a session writes "
                    "one at a time; close the stream, wait longer, or give each caller a session.fork()"
                )
            self._refuse_own(started)
        try:
            self._moved_at = time.monotonic()  # first: the owner may be waiting and looks at both
            self._owner = this_thread() if owner is None else owner
            if closing:
                self._close(resting=False)
            else:
                self.moved()
        except BaseException:
            self._give_back()
            raise
        return True

    def _close(self, resting: bool) -> bool:
        """Let nothing run from now on; return False, and change nothing, if it is to rest and does not."""
        with self._going_on:
            if resting and not self._is_resting:
                return False
            self._is_closed = True
            return True

    def _refuse_own(self, started: float) -> None:
        if self._is_own() and self._stands_still(started):
            raise SessionBusy(
                "a stream of this session is open in this thread, and a session writes one answer at a time: "
                "exhaust it or close() it first, or ask a session.fork()"
            )

    def _is_own(self) -> bool:
        return self._owner is this_thread()

    def _stands_still(self, started: float) -> bool:
        return time.monotonic() - max(started, self._moved_at) >= STANDSTILL

    def _give_back(self) -> None:
        self._owner, self._is_resting = None, False
        self._lock.release()


def this_thread() -> object:
    """Return a mark of this thread; unlike its number, no later thread has the same."""
    mark = getattr(_thread, "mark", None)
    if mark is None:
        mark = _thread.mark = object()
    return mark
