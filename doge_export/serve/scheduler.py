"""The scheduler: one thread that admits waiting answers to free lanes and decodes all of them, token by token."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from doge_export.runtime.generate import FinishReason, Row
from doge_export.runtime.prediction import Prediction
from doge_export.serve.api_error import ApiError, log_bug
from doge_export.serve.lanes import Lanes

_PATIENCE = 0.005
"""Most seconds for which a step waits for requests that are being read, so that their prompts are read together.

Clients whose answers end together ask again together, and what reads their requests needs the processors, too."""

Look = Callable[[Prediction], Callable[[int], Any]]
"""Reader of a prediction before its token is chosen; what it returns makes a record of the token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A token of an answer, or the error that ended it.

    Attributes:
        piece: text that is safe to show, often empty.
        record: log-probabilities of the token; None if nobody asked for them.
        finish_reason: what ended the answer with this token; the row may be further by the time this is read.
        error: what ended it instead of a token.
    """

    piece: str
    record: Any
    finish_reason: FinishReason | None
    error: Exception | None = None


class Task:
    """An answer that waits, is written, or has ended.

    Args:
        row: the answer.
        loop: the event loop that waits for it.
        deliver: called in the loop with each event.
        look: what makes the records; None for none.
    """

    def __init__(
        self, row: Row, loop: asyncio.AbstractEventLoop, deliver: Callable[[Event], None], look: Look | None = None
    ) -> None:
        self.row, self.loop, self.deliver, self.look = row, loop, deliver, look
        self.is_cancelled = False


class Scheduler:
    """Queue and lanes.

    Args:
        lanes: where answers are decoded.
        parallel: number of lanes.
        max_queue: most answers that wait while every lane is taken.
    """

    def __init__(self, lanes: Lanes, parallel: int, max_queue: int) -> None:
        self._lanes, self._parallel, self._max_queue = lanes, parallel, max_queue
        self._changed = threading.Condition()
        self._waiting: collections.deque[Task] = collections.deque()
        self._running: dict[int, Task] = {}
        self._coming = 0
        self._patient_until = 0.0
        self._is_closed = False
        self._failure: BaseException | None = None
        self._events: list[tuple[Task, Event]] = []
        self._thread = threading.Thread(target=self._run, name="doge-scheduler", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """True once a bug has ended the thread; nothing is answered any more."""
        return self._failure is not None

    @property
    def waiting(self) -> int:
        """Answers that wait for a lane."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return len(self._running)

    @contextlib.contextmanager
    def request_coming(self) -> Iterator[None]:
        """Read a request in the body, for which the next step waits a little."""
        with self._changed:
            if self._coming == 0:
                self._patient_until = time.monotonic() + _PATIENCE
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                if self._coming == 0:
                    self._changed.notify()

    def submit(self, tasks: list[Task]) -> None:
        """Let answers wait for their lanes.

        Raises:
            ApiError: too many wait already (429).
        """
        with self._changed:
            if self._failure is not None or self._is_closed:
                raise ApiError(503, "the server answers no more: it ended or failed", "unavailable")
            free = self._parallel - self.running
            if len(self._waiting) + len(tasks) > free + self._max_queue:
                raise queue_full(len(self._waiting))
            self._waiting.extend(tasks)
            self._changed.notify()

    def cancel(self, tasks: list[Task]) -> None:
        """End answers that nobody waits for; those that have ended stay so."""
        with self._changed:
            for task in tasks:
                task.is_cancelled = True
                if task in self._waiting:
                    self._waiting.remove(task)

    def close(self) -> None:
        """End the thread after the step that runs."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._lanes.close()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            with self._changed:
                self._failure = error
                left = [*self._running.values(), *self._waiting]
                self._running.clear()
                self._waiting.clear()
            shown = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._events += [(task, Event("", None, None, shown)) for task in left]
            self._hand_out()
            log_bug(error)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._is_closed):
                    self._changed.wait()
                self._changed.wait_for(
                    lambda: self._coming == 0 or self._is_closed, max(0.0, self._patient_until - time.monotonic())
                )
                if self._is_closed:
                    return
                asking = set() if self._lanes.is_full else {task.loop for task in self._waiting}
            self._let_loops_catch_up(asking)
            self._drop_cancelled()
            self._admit()
            self._step()
            began = {task.loop for task, _ in self._events if len(task.row.token_ids) == 1}
            self._hand_out()
            self._let_loops_catch_up(began)

    def _let_loops_catch_up(self, loops: set[asyncio.AbstractEventLoop]) -> None:
        """Wait a little until event loops have read what has come and sent what there is.

        Around first tokens alone: a step takes all processors, and a loop that a step keeps from one makes others wait.
        """
        for loop in loops:
            done = threading.Event()

            def turn(left: int, loop: asyncio.AbstractEventLoop = loop, done: threading.Event = done) -> None:
                if left:
                    loop.call_soon(turn, left - 1)
                else:
                    done.set()

            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(turn, 3)
                done.wait(_PATIENCE)

    def _drop_cancelled(self) -> None:
        for lane in [lane for lane, task in self._running.items() if task.is_cancelled]:
            self._end(lane)

    def _admit(self) -> None:
        """Give free lanes to the answers that wait longest."""
        with self._changed:
            while self._waiting and not self._lanes.is_full:
                task = self._waiting.popleft()
                try:
                    lane = self._lanes.begin(task.row.prompt_token_ids)
                except Exception as error:
                    self._events.append((task, Event("", None, None, error)))
                else:
                    self._running[lane] = task

    def _step(self) -> None:
        if not self._running:
            return
        tokens = {lane: task.row.token_ids[-1] for lane, task in self._running.items() if task.row.token_ids}
        found = self._lanes.step(tokens)
        for lane, prediction in found.items():
            self._advance(lane, prediction)

    def _advance(self, lane: int, prediction: Prediction | Exception) -> None:
        task = self._running[lane]
        try:
            if isinstance(prediction, Exception):
                raise prediction
            record = None if task.look is None else task.look(prediction)
            piece, reason = task.row.advance(prediction), task.row.finish_reason
            event = Event(piece, None if record is None else record(task.row.token_ids[-1]), reason)
        except Exception as error:
            self._end(lane)
            self._events.append((task, Event("", None, None, error)))
            return
        if reason is not None:
            self._end(lane)
        self._events.append((task, event))

    def _end(self, lane: int) -> None:
        del self._running[lane]
        self._lanes.leave(lane)

    def _hand_out(self) -> None:
        """Deliver the events so far, waking each loop once."""
        events, self._events = self._events, []
        for loop in {task.loop for task, _ in events}:
            mine = [(task, event) for task, event in events if task.loop is loop]
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(_deliver, mine)


def _deliver(events: list[tuple[Task, Event]]) -> None:
    for task, event in events:
        task.deliver(event)


def queue_full(waiting: int) -> ApiError:
    """Return the refusal of a request when as many wait as may."""
    return ApiError(429, f"{waiting} answers wait already: try again later", "queue_full", None, {"Retry-After": "1"})
