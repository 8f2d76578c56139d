"""The interface of a timed model, which reads a prompt and decodes greedily, and its implementation by a session."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from doge_export.runtime.context import Context
from doge_export.runtime.session import Session


class TimedModel(Protocol):
    """A model to time. Prompts are int64 [1, S]; all times are in seconds.

    Attributes:
        name: for the table.
        spins: its threads go on for a while after a run, and slow what runs next.
    """

    name: str
    spins: bool

    def read(self, prompt: np.ndarray) -> float:
        """Read a prompt with an empty cache and choose the next token; return the time to first token."""

    def step(self, count: int) -> float:
        """Read the chosen token and choose the next, `count` times; return the time."""

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """Generate `new_tokens` tokens greedily after a prompt, none of which ends the answer; return the time."""


class TimedSession:
    """A session that is read as `Session.generate` reads it, and whose best token is chosen at each step."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self.spins = session.decoder.backend == "graph"
        self._context = Context(session.decoder)
        self._token = np.zeros((1, 1), np.int64)

    def read(self, prompt: np.ndarray) -> float:
        """See `TimedModel`."""
        rows = prompt.tolist()
        start = time.perf_counter()
        predictions, self._turn = self._context.read(rows)
        self._token[0, 0] = predictions[0].argmax()
        return time.perf_counter() - start

    def step(self, count: int) -> float:
        """See `TimedModel`."""
        start = time.perf_counter()
        for _ in range(count):
            self._token[0, 0] = self._context.append(self._turn, self._token)[0].argmax()
        return time.perf_counter() - start

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `TimedModel`."""
        return self.read(prompt) + self.step(new_tokens - 1)
