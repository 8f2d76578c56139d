"""Lanes: answers that are decoded beside one another, each over a fork of one decoder.

The scheduler knows `Lanes` alone, so that another way of decoding together can take their place.
A fork computes what `doge-export generate` computes, so an answer does not depend on what runs beside it.
"""

from __future__ import annotations

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

    def read(self, token_ids: list[int]) -> tuple[int, Prediction]:
        """Read a prompt in a free lane; return the lane and the prediction of the next token."""

    def step(self, tokens: Mapping[int, int]) -> Mapping[int, Prediction | Exception]:
        """Read one more token in each lane; return the prediction of the next one, or what failed."""

    def leave(self, lane: int) -> None:
        """Free a lane."""

    def close(self) -> None:
        """End threads; the decoder is the session's."""


class ForkLanes:
    """Forks of a decoder that share its weights; the steps of several run at the same time.

    Args:
        decoder: the first lane.
        count: number of lanes; each is made when it is needed first.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        self._decoder, self._count = decoder, count
        self._contexts: list[Context] = []
        self._free: list[int] = []
        self._turns: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(max(1, min(count, allowed_processors())), "doge-lane")

    @property
    def is_full(self) -> bool:
        """True if no lane is free."""
        return not self._free and len(self._contexts) == self._count

    def read(self, token_ids: list[int]) -> tuple[int, Prediction]:
        """Read a prompt in a free lane; return the lane and the prediction of the next token."""
        if not self._free:
            self._contexts.append(Context(self._decoder.fork() if self._contexts else self._decoder))
            self._free.append(len(self._contexts) - 1)
        lane = self._free[-1]
        predictions, self._turns[lane] = self._contexts[lane].read([token_ids])
        self._free.pop()
        return lane, predictions[0]

    def step(self, tokens: Mapping[int, int]) -> dict[int, Prediction | Exception]:
        """Read one more token in each lane; return the prediction of the next one, or what failed."""

        def one(lane: int, token: int) -> Prediction | Exception:
            try:
                return self._contexts[lane].append(self._turns[lane], np.array([[token]], np.int64))[0]
            except Exception as error:
                return error

        if len(tokens) == 1:
            return {lane: one(lane, token) for lane, token in tokens.items()}
        return dict(zip(tokens, self._pool.map(one, tokens.keys(), tokens.values()), strict=True))

    def leave(self, lane: int) -> None:
        """Free a lane."""
        self._free.append(lane)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
