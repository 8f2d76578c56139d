"""What is timed: something that reads a prompt and goes on from there, greedily, token by token."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from doge_export.runtime.context import Context
from doge_export.runtime.session import Session


class TimedModel(Protocol):
    """A row of the table. Prompts are int64 [1, S]; every time is in seconds."""

    name: str

    def read(self, prompt: np.ndarray) -> float:
        """Time from nothing to the token behind the prompt: the time to first token."""

    def step(self, count: int) -> float:
        """Time of so many more tokens, each read and its successor chosen."""

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """Time of a whole greedy generation that no token ends."""


class TimedSession:
    """A session, asked as `Session.generate` asks: the same reads, and the likeliest token of each step."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
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
