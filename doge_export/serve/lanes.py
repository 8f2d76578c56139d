"""Lanes: answers that are decoded beside one another, each over a fork of one decoder.

A fork computes what `doge-export generate` computes, so an answer does not depend on what runs beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from doge_export.processors import allowed_processors
from doge_export.runtime.context import Context
from doge_export.runtime.decoders.decoder import Decoder
from doge_export.runtime.prediction import Prediction


class Lanes(Protocol):
    """What the scheduler's thread asks of lanes."""

    @property
    def is_full(self) -> bool:
        """True if no lane is free."""

    def begin(self, token_ids: list[int]) -> int:
        """Take a free lane for a prompt, which the next calls of `step` read; return the lane."""

    def step(self, tokens: Mapping[int, int]) -> Mapping[int, Prediction | Exception]:
        """Read one more token in each of these lanes, and prompts that were begun.

        Returns:
            The prediction of the next token, or what failed, for each of these lanes, and for those whose prompt is now
            read.
        """

    def leave(self, lane: int) -> None:
        """Free a lane, whatever is left of its prompt."""

    def close(self) -> None:
        """End threads; the decoder is the session's."""


class ForkLanes:
    """Forks of a decoder that share its weights; the steps of several run at the same time, each by one thread.

    Args:
        decoder: the first lane.
        count: number of lanes; each is made when it is needed first.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        self._decoder, self._count = decoder, count
        self._contexts: list[Context] = []
        self._free: list[int] = []
        self._turns: dict[int, int] = {}
        self._prompts: dict[int, list[int]] = {}  # by lane, the oldest first
        self._pool = ThreadPoolExecutor(max(1, min(count, allowed_processors())), "doge-lane")

    @property
    def is_full(self) -> bool:
        """True if no lane is free."""
        return not self._free and len(self._contexts) == self._count

    def begin(self, token_ids: list[int]) -> int:
        """See `Lanes.begin`."""
        if not self._free:
            self._contexts.append(Context(self._decoder.fork() if self._contexts else self._decoder))
            self._free.append(len(self._contexts) - 1)
        lane = self._free.pop()
        self._prompts[lane] = token_ids
        return lane

    def step(self, tokens: Mapping[int, int]) -> dict[int, Prediction | Exception]:
        """See `Lanes.step`. The oldest prompt is read whole; the others wait for the next steps."""
        lanes = [*tokens, *itertools.islice(self._prompts, 1)]
        return dict(zip(lanes, self._pool.map(self._one, lanes, map(tokens.get, lanes)), strict=True))

    def _one(self, lane: int, token: int | None) -> Prediction | Exception:
        """Read a token, or None for the lane's prompt."""
        context = self._contexts[lane]
        try:
            if token is not None:
                return context.append(self._turns[lane], np.array([[token]], np.int64))[0]
            predictions, self._turns[lane] = context.read([self._prompts.pop(lane)])
            return predictions[0]
        except Exception as error:
            return error

    def leave(self, lane: int) -> None:
        """See `Lanes.leave`."""
        self._prompts.pop(lane, None)
        self._free.append(lane)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
