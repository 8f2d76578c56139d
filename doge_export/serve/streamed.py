"""An answer as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.responses import Response

from doge_export.serve.answers import Answers
from doge_export.serve.api_error import api_error, log_bug, out_of_time
from doge_export.serve.bodies import Bodies, dumped
from doge_export.serve.limits import Limits
from doge_export.serve.requests import Request

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx would collect the stream
]


class Streamed(Response):
    """A stream that ends its answers when the client is gone, slow, or out of time."""

    def __init__(self, answers: Answers, request: Request, limits: Limits) -> None:
        super().__init__()
        self._answers, self._request, self._limits = answers, request, limits
        self._bodies = Bodies(request)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""

        began: float | None = None  # of the part that is being sent

        async def part(content: bytes, more: bool = True) -> None:
            nonlocal began
            began = time.monotonic()
            await send({"type": "http.response.body", "body": content, "more_body": more})
            began = None

        async def stall() -> None:
            while began is None or time.monotonic() < began + self._limits.body_seconds:
                await asyncio.sleep(self._limits.body_seconds / 4)

        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            try:
                async with asyncio.timeout(self._limits.request_seconds):
                    await self._events(part)
            except TimeoutError:
                await part(_event(out_of_time(self._limits.request_seconds).body()))
            except Exception as error:
                log_bug(error)
                await part(_event(api_error(error).body()))
            await part(b"data: [DONE]\n\n", more=False)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        # A timer around each part would take as long as the part.
        tasks = writing, _, stalling = [asyncio.ensure_future(each()) for each in (write, watch, stall)]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answers.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if stalling in ended and writing not in ended and "abort" in scope["state"]:
            scope["state"]["abort"]()  # closing would wait for what the client does not take
            await asyncio.sleep(0)

    async def _events(self, part: Any) -> None:
        rows, request = self._answers.rows, self._request
        for index in range(len(rows) if request.is_chat else 0):
            await part(_event(self._bodies.beginning(index)))
        async for events in self._answers.events():
            parts = []
            for index, event in events:
                told = None if event.record is None else [event.record]
                chunk = self._bodies.chunk(index, event.piece, told, event.finish_reason)
                if chunk is not None:
                    parts.append(_event(chunk))
            if parts:
                await part(b"".join(parts))
        if request.include_usage:
            await part(_event(self._bodies.last(rows, request.n)))


def _event(body: Any) -> bytes:
    return b"data: " + dumped(body) + b"\n\n"
