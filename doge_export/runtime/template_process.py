"""The process in which chat templates are rendered: one for this process, started at the first conversation.

It is told of a request and has `TIME_LIMIT` seconds to answer it, or is killed. It ends with this process, since its
stdin is closed then.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from doge_export.errors import RunFailed
from doge_export.runtime import template_engine as engine

START_LIMIT = 60.0
"""Seconds that the process may take to start; it takes about 0.1."""

LOST = "it took more than {limit:g} seconds or too much memory"


class TemplateProcess:
    """A running `template_engine`.

    Raises:
        RunFailed: it cannot be started.
    """

    def __init__(self) -> None:
        # The engine's file is run by its path: as a module of its package it would load onnxruntime first.
        needed = [str(Path(str(package.__file__)).parent.parent) for package in (jinja2, markupsafe)]
        command = f"import runpy, sys; sys.path += {needed!r}; runpy.run_path({engine.__file__!r}, None, '__main__')"
        own_group: dict[str, Any] = {} if os.name == "nt" else {"start_new_session": True}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                **own_group,
            )
            self._read(START_LIMIT)
        except (OSError, ValueError, EOFError) as error:
            raise RunFailed(
                f"chat templates are rendered in a process of their own, and {sys.executable or 'Python'} cannot be "
                f"started for it ({error or 'it ended at once'}): allow it, or render the conversation elsewhere and "
                "give the text"
            ) from error
        self.owner = os.getpid()

    @property
    def is_running(self) -> bool:
        """True as long as it can be asked."""
        return self._process.poll() is None

    def ask(self, request: bytes) -> tuple[int, str]:
        """Return the status and the text of the answer to a request.

        Raises:
            EOFError: the process is gone: the request took too long or too much memory.
        """
        assert self._process.stdin is not None
        killer = threading.Timer(engine.TIME_LIMIT, self._process.kill)
        killer.start()
        try:
            self._process.stdin.write(engine.REQUEST.pack(len(request)) + request)
            self._process.stdin.flush()
            return self._answer()
        except OSError as error:
            raise EOFError from error
        finally:
            killer.cancel()

    def _read(self, limit: float) -> None:
        killer = threading.Timer(limit, self._process.kill)
        killer.start()
        try:
            self._answer()
        finally:
            killer.cancel()

    def _answer(self) -> tuple[int, str]:
        assert self._process.stdout is not None
        status, size = engine.ANSWER.unpack(self._exactly(engine.ANSWER.size))
        if size > 4 * engine.OUTPUT_LIMIT:  # UTF-8 takes at most 4 bytes for a character
            raise EOFError
        return status, self._exactly(size).decode("utf-8", "surrogatepass")

    def _exactly(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def end(self) -> None:
        """End the process."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


class _Shared:
    """The process of this process, and a lock for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: TemplateProcess | None = None


_shared = _Shared()


def _end() -> None:
    if _shared.process is not None:
        _shared.process.end()
        _shared.process = None


def _forget_in_child() -> None:
    global _shared
    _shared = _Shared()  # the parent's process answers the parent, and its lock may be held


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def ask(kind: str, source: str, variables: dict[str, Any]) -> tuple[int, str]:
    """Return the status and the text of `template_engine.answer`, within limits of time, memory and output.

    Args:
        kind: "literals" or "render".
        source: the template.
        variables: plain data: None, bool, int, float, str, and lists, tuples and dicts of those.

    Raises:
        RunFailed: the process cannot be started.
    """
    if getattr(sys, "frozen", False):  # sys.executable is the frozen program, which must not be started again
        return engine.answer(kind, source, variables)
    try:
        request = marshal.dumps((kind, source, variables))
    except ValueError as error:  # nested too deeply
        return engine.FAILED, str(error)
    with _shared.lock:
        process = _shared.process
        if process is not None and not process.is_running:
            process.end()
            process = None
        process = process or TemplateProcess()
        _shared.process = None  # an interruption leaves it with an answer that nobody waits for
        try:
            found = process.ask(request)
        except EOFError:
            process.end()
            return engine.FAILED, LOST.format(limit=engine.TIME_LIMIT)
        except BaseException:
            process.end()
            raise
        _shared.process = process
        return found
