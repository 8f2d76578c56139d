"""What surrounds every request: its time and status are counted, and a refused body is still taken from its sender."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from typing import Any

from doge_export.serve.limits import Limits
from doge_export.serve.metrics import Metrics


class Watched:
    """An ASGI application around another one.

    A client that sends a body while the answer is a refusal sees a broken connection, not the refusal, if the server
    closes before the body is read. So it is read first, and forgotten.

    Args:
        app: the other one.
        metrics: where requests are counted.
        limits: limits of what is read.
        paths: paths to count by name.
    """

    def __init__(self, app: Any, metrics: Metrics, limits: Limits, paths: Collection[str]) -> None:
        self._app, self._metrics, self._limits, self._paths = app, metrics, limits, frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; other messages, such as another server's "lifespan", go on as they come."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        arrived = time.monotonic()
        scope.setdefault("state", {})["arrived"] = arrived
        is_read = any(name == b"expect" for name, _ in scope["headers"])  # such a client waits before it sends a body
        status = 499

        async def reading() -> Any:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def drain() -> None:
            left = 16 * self._limits.body_bytes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.body_seconds):
                    while not is_read and left > 0:
                        left -= len((await reading()).get("body", b""))

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and status != 408:
                    await drain()
            await send(message)

        try:
            await self._app(scope, reading, sending)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.add(path, status)
            self._metrics.request_seconds.observe(time.monotonic() - arrived)
