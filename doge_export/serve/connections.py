"""Connections that are given up when their client is too slow, and refused when there are too many."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from doge_export.serve.api_error import ApiError
from doge_export.serve.bodies import dumped
from doge_export.serve.limits import Limits


class Connection(H11Protocol):
    """uvicorn's connection with a time limit for the head of a request, of which uvicorn has none.

    Attributes:
        limits: set by `connection_class`.
    """

    limits = Limits()
    app_state: dict[str, Any]
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or refuse it."""
        is_too_many = len(self.connections) >= self.limits.connections
        self.app_state = {**self.app_state, "abort": transport.abort}
        super().connection_made(transport)
        if is_too_many:
            self._refuse(ApiError(503, "too many connections: try again later", "overloaded"), b"Service Unavailable")
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch_head()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            seconds = f"{self.limits.head_seconds:g}"
            self._refuse(ApiError(408, f"the request did not come within {seconds} s", "timeout"), b"Request Timeout")
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that does not even take its last answer is cut."""
        is_stuck = self.transport.get_write_buffer_size() > 0
        super().timeout_keep_alive_handler()
        if is_stuck:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(ApiError(400, "this is no valid HTTP request", "invalid_http"), b"Bad Request")

    def _refuse(self, error: ApiError, reason: bytes) -> None:
        body = dumped(error.body())
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            head: Any = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def connection_class(limits: Limits) -> type[Connection]:
    """Return the class of a server's connections."""
    return type("Connection", (Connection,), {"limits": limits})
