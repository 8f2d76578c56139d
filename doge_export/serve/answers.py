"""Answers to one request, as the event loop sees them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from doge_export.runtime.generate import FinishReason, Row
from doge_export.serve.metrics import Metrics
from doge_export.serve.scheduler import Task

if TYPE_CHECKING:
    from doge_export.serve.model import ServedModel

ENDED = {"eos": "stop", "stop": "stop", "length": "length", None: "cancelled"}


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A token of an answer, or the error that ended it.

    Attributes:
        index: number of the answer.
        piece: text that is safe to show, often empty.
        record: log-probabilities of the token; None if nobody asked for them.
        finish_reason: what ended the answer with this token; the row may be further by the time this is read.
        error: what ended it instead of a token.
    """

    index: int
    piece: str
    record: Any
    finish_reason: FinishReason | None
    error: Exception | None


class Answers:
    """Answers that are waited for; `cancel` must be called at the end, whatever it was.

    Args:
        model: the model that writes them.
        rows: the answers.
        logprobs: see `Request`.
        metrics: where they are counted.
        arrived: time.monotonic() of the request.

    Raises:
        ApiError: too many wait already (429).
    """

    def __init__(
        self, model: ServedModel, rows: list[Row], logprobs: int | None, metrics: Metrics, arrived: float
    ) -> None:
        assert model.scheduler is not None
        self._loop, self._scheduler = asyncio.get_running_loop(), model.scheduler
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._metrics, self._arrived, self._is_counted = metrics, arrived, False
        self.rows = rows
        look = None if logprobs is None else model.look(logprobs)
        self._tasks = [Task(row, self._deliverer(index, row), look) for index, row in enumerate(rows)]
        self._scheduler.submit(self._tasks)

    def _deliverer(self, index: int, row: Row) -> Callable[[str, Any, Exception | None], None]:
        def deliver(piece: str, record: Any, error: Exception | None) -> None:
            event = Event(index, piece, record, row.finish_reason, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)

        return deliver

    async def events(self) -> AsyncIterator[Event]:
        """Yield the tokens of all answers until each has ended.

        Raises:
            Exception: what ended one of them.
        """
        left, is_first = len(self.rows), True
        while left:
            event = await self._events.get()
            if event.error is not None:
                raise event.error
            if is_first:
                self._metrics.first_token_seconds.observe(time.monotonic() - self._arrived)
                is_first = False
            left -= event.finish_reason is not None
            yield event

    def cancel(self) -> None:
        """End the answers that are still written, and count them."""
        self._scheduler.cancel(self._tasks)
        if self._is_counted:
            return
        self._is_counted = True
        for row in self.rows:
            self._metrics.answers.add(ENDED[row.finish_reason])
            self._metrics.prompt_tokens.add(more=len(row.prompt_token_ids))
            self._metrics.written_tokens.add(more=len(row.token_ids))
