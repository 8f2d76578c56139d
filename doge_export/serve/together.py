"""Lanes of a decoder that reads its weights once for all of them: answers beside one another in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from doge_export.runtime.decoders.decoder import Decoder
from doge_export.runtime.prediction import Prediction

_PIECE = 128
"""Prompt tokens of a step in all: answers that are being written wait for no more than these, unless a prompt must be
read whole (`Decoder.chunkable_length`)."""


class TogetherLanes:
    """Forks of a decoder whose `reads_together` is true; the tokens of several are read in one run.

    An answer is the one that `doge-export generate` gives, up to the rounding of prompts that are read in other pieces.

    Args:
        decoder: the first lane.
        count: number of lanes; each is made when it is needed first.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        self._decoder, self._count = decoder, count
        self._decoders: list[Decoder] = []
        self._free: list[int] = []
        self._prompts: dict[int, list[int]] = {}  # by lane: tokens that are still to be read, the oldest prompt first

    @property
    def is_full(self) -> bool:
        """See `Lanes.is_full`."""
        return not self._free and len(self._decoders) == self._count

    def begin(self, token_ids: Sequence[int]) -> int:
        """See `Lanes.begin`."""
        if not token_ids:
            raise ValueError("an empty prompt")
        if not self._free:
            self._decoders.append(self._decoder.fork() if self._decoders else self._decoder)
            self._free.append(len(self._decoders) - 1)
        lane = self._free[-1]
        self._decoders[lane].reset()
        self._free.pop()
        self._prompts[lane] = list(token_ids)
        return lane

    def step(self, tokens: Mapping[int, int]) -> dict[int, Prediction | Exception]:
        """See `Lanes.step`. Prompts are read in pieces."""
        lanes = list(tokens)
        ids = [np.array([[tokens[lane]]], np.int64) for lane in lanes]
        room = _PIECE
        for lane, prompt in self._prompts.items():
            in_pieces = self._decoders[lane].length + len(prompt) <= self._decoder.chunkable_length
            size = min(room, len(prompt)) if in_pieces else len(prompt)
            if size == 0:
                break
            lanes.append(lane)
            ids.append(np.array([prompt[:size]], np.int64))
            room = max(0, room - size)
        found = self._read(lanes, ids)
        for lane, piece in zip(lanes, ids, strict=True):
            if lane in tokens:
                continue
            del self._prompts[lane][: piece.shape[1]]
            if self._prompts[lane] and not isinstance(found[lane], Exception):
                del found[lane]
            else:
                del self._prompts[lane]
        return found

    def _read(self, lanes: list[int], ids: list[np.ndarray]) -> dict[int, Prediction | Exception]:
        decoders = [self._decoders[lane] for lane in lanes]
        lengths = [decoder.length for decoder in decoders]
        try:
            return dict(zip(lanes, self._decoder.predict_together(decoders, ids), strict=True))
        except Exception:
            pass  # of one of them: each alone tells which
        found: dict[int, Prediction | Exception] = {}
        for lane, decoder, length, new in zip(lanes, decoders, lengths, ids, strict=True):
            try:
                if decoder.length != length:
                    decoder.rewind(length)
                found[lane] = decoder.predict(new)[0]
            except Exception as error:
                found[lane] = error
        return found

    def leave(self, lane: int) -> None:
        """See `Lanes.leave`."""
        self._prompts.pop(lane, None)
        self._free.append(lane)

    def close(self) -> None:
        """Free nothing: the session closes its decoder, and the others end with these lanes."""
