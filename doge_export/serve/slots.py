"""Places of requests that are each computed in one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from doge_export.serve.scheduler import queue_full


class Slots:
    """A number of places, and a number of requests that may wait for one; used by the event loop's thread alone.

    Attributes:
        running: requests that have a place.
        waiting: requests that wait.
    """

    def __init__(self, parallel: int, max_queue: int) -> None:
        self._places, self._max_queue = asyncio.Semaphore(parallel), max_queue
        self.running = self.waiting = 0

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Hold a place in the body.

        Raises:
            ApiError: too many wait already (429).
        """
        if self._places.locked() and self.waiting >= self._max_queue:
            raise queue_full(self.waiting)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._places.release()
