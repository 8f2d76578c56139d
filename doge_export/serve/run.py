"""Running the server: the port first, then the model behind it, and a drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.serve.app import App
from doge_export.serve.connections import connection_class


class Server(uvicorn.Server):
    """uvicorn's server, which the first SIGTERM or Ctrl-C lets answer what it has begun, and the second one end."""

    _is_draining = False
    on_listening: Callable[[], object] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `on_listening`."""
        await super().startup(sockets)
        if self.on_listening is not None:
            self.on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals in the body only; uvicorn's own raises them again behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain at the first signal."""
        self.force_exit, self._is_draining = self._is_draining, True
        self.should_exit = True


def open_port(host: str, port: int) -> socket.socket:
    """Take a port.

    Raises:
        DogeExportError: it is in use, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it lets two servers share a port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise DogeExportError(f"cannot listen on {host} port {port}: {reason}; give another --host or --port") from None
    return taken


def server_of(app: App) -> Server:
    """Return the server of an application."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are of what clients send
    limits = app.limits
    return Server(
        uvicorn.Config(
            app.asgi,
            http=connection_class(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=math.ceil(limits.request_seconds + limits.body_seconds),
        )
    )


def serve(folder: Path, host: str, port: int, app: App, **options: Any) -> None:
    """Serve until a signal comes.

    Args:
        folder: an exported folder.
        host: address to listen on.
        port: port; 0 for a free one.
        app: the routes.
        options: keywords of `ServedModel`.

    Raises:
        DogeExportError: the port is in use, or the folder cannot be opened.
    """
    taken = open_port(host, port)
    server = server_of(app)
    failures: list[BaseException] = []

    def load() -> None:
        from doge_export.serve.model import ServedModel

        try:
            app.model = ServedModel(folder, **options)
            console.log(f"{app.name} is loaded")
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    loader = threading.Thread(target=load, name="doge-loader")
    shown = f"[{host}]" if ":" in host else host
    console.log(f"listening on http://{shown}:{taken.getsockname()[1]}")

    server.on_listening = loader.start
    asyncio.run(server.serve(sockets=[taken]))
    if loader.ident is not None:
        loader.join()
    if failures:
        raise failures[0]
    if app.model is not None:
        app.model.close()
