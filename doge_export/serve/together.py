"""Lanes of a decoder that reads its weights once for all of them: answers beside one another in one run.

A lane keeps what it has read. A prompt goes to the free lane that has read most of its beginning, if that is half of
it, and only the rest is read: the next turn of a conversation, or the same instructions with another question. Else it
goes to the lane that was left longest ago, and takes the place of what that has read.
"""

from __future__ import annotations

from array import array
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
        self._read_ids: list[array[int]] = []  # by lane: ids in its caches; none if they had to be read whole
        self._free: list[int] = []  # the lane that was left first is the first
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
            self._read_ids.append(array("q"))
            self._free.append(len(self._decoders) - 1)
        wanted = np.array(token_ids, np.int64)
        known = {lane: self._known(lane, wanted) for lane in self._free}
        lane = max(known, key=lambda lane: known[lane])
        if 2 * known[lane] < len(token_ids):
            lane = self._free[0]
        kept = known[lane]
        ids, self._read_ids[lane] = self._read_ids[lane], array("q")  # what fails below leaves none
        if kept:
            self._decoders[lane].rewind(kept)
            self._read_ids[lane] = ids[:kept]
        else:
            self._decoders[lane].reset()
        self._free.remove(lane)
        self._prompts[lane] = list(token_ids[kept:])
        return lane

    def _known(self, lane: int, token_ids: np.ndarray) -> int:
        """Return how many of a prompt's first tokens the lane needs not read; the last is read for its prediction."""
        decoder, ids = self._decoders[lane], np.array(self._read_ids[lane], np.int64)
        if len(token_ids) > decoder.chunkable_length or decoder.length != len(ids):  # a head that failed takes one back
            return 0
        most = min(len(ids), len(token_ids) - 1)
        differs = ids[:most] != token_ids[:most]
        return decoder.recallable(int(differs.argmax()) if differs.any() else most)

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
            self._note(lane, piece, found[lane])
            if lane in tokens:
                continue
            del self._prompts[lane][: piece.shape[1]]
            if self._prompts[lane] and not isinstance(found[lane], Exception):
                del found[lane]
                continue
            del self._prompts[lane]
            try:
                if self._read_ids[lane]:
                    self._decoders[lane].mark()
            except MemoryError:  # the answer is good; what was read is not kept
                self._read_ids[lane] = array("q")
        return found

    def _note(self, lane: int, piece: np.ndarray, found: Prediction | Exception) -> None:
        """Record what a lane has read, all of it from its first token on, or that this is not known."""
        known, length = self._read_ids[lane], self._decoders[lane].length
        if isinstance(found, Exception) or length > self._decoder.chunkable_length:
            del known[:]
        elif len(known) + piece.shape[1] == length:
            known.extend(piece[0].tolist())

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
