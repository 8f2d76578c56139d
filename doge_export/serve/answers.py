"""Answers to one request, as the event loop sees them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from doge_export.runtime.generate import Row
from doge_export.serve.metrics import Metrics
from doge_export.serve.scheduler import Event, Task

if TYPE_CHECKING:
    from doge_export.serve.model import ServedModel

ENDED = {"eos": "stop", "stop": "stop", "length": "length", None: "cancelled"}


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
        loop, self._scheduler = asyncio.get_running_loop(), model.scheduler
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._metrics, self._arrived, self._is_counted = metrics, arrived, False
        self.rows = rows
        look = None if logprobs is None else model.look(logprobs)
        self._tasks = [Task(row, loop, functools.partial(self._deliver, index), look) for index, row in enumerate(rows)]
        self._scheduler.submit(self._tasks)

    def _deliver(self, index: int, event: Event) -> None:
        self._events.put_nowait((index, event))

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield the tokens of all answers, each with the number of its answer, until each has ended.

        Those that have come since the last time come together.

        Raises:
            Exception: what ended one of them.
        """
        left, is_first = len(self.rows), True
        while left:
            events = [await self._events.get()]
            while not self._events.empty():
                events.append(self._events.get_nowait())
            for _, event in events:
                if event.error is not None:
                    raise event.error
                left -= event.finish_reason is not None
            if is_first:
                self._metrics.first_token_seconds.observe(time.monotonic() - self._arrived)
                is_first = False
            yield events

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
