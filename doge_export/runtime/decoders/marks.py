"""Marks: states of a bounded cache that are kept to go back to, once keys have been dropped."""

from __future__ import annotations

import collections
import dataclasses
from typing import Generic, TypeVar

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array

MARKS = 2
"""States that are kept: the ends of the last two prompts of a conversation."""

Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Mark(Generic[Content]):
    """The cache at some time.

    Attributes:
        length: tokens of a row, padding included.
        tokens: int64 [B, 1], those of each row without padding.
        is_whole: no key had been dropped, so the mark serves every length before it too.
        content: the keys, values and scores, as the decoder keeps them.
    """

    length: int
    tokens: Array
    is_whole: bool
    content: Content


class Marks(Generic[Content]):
    """The last `MARKS` marks of a decoder."""

    def __init__(self) -> None:
        self._kept: collections.deque[Mark[Content]] = collections.deque(maxlen=MARKS)

    def add(self, mark: Mark[Content]) -> None:
        """Keep a mark, in the place of the oldest one where there are enough."""
        self._kept.append(mark)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def forget_behind(self, length: int) -> None:
        """Forget the marks of more than `length` tokens, which are now of another text."""
        for mark in [mark for mark in self._kept if mark.length > length]:
            self._kept.remove(mark)

    def recallable(self, length: int) -> int:
        """Return the largest number of tokens, at most `length`, that a mark can be set back to; 0 without one."""
        return max((min(mark.length, length) for mark in self._kept if self._serves(mark, length)), default=0)

    def of(self, length: int) -> Mark[Content] | None:
        """Return the mark of exactly `length` tokens, or else a whole one of more; None if there is neither."""
        marks = [mark for mark in self._kept if mark.length >= length]
        exact = next((mark for mark in marks if mark.length == length), None)
        return exact or next((mark for mark in marks if mark.is_whole), None)

    @staticmethod
    def _serves(mark: Mark[Content], length: int) -> bool:
        return mark.is_whole or mark.length <= length


def no_way_back(now: int, length: int) -> DogeExportError:
    """Return the error of a decoder that cannot go back from `now` to `length` tokens."""
    return DogeExportError(
        f"this bounded cache cannot be set back from {now} to {length} tokens: keys of that time were dropped; reset "
        "it and read the tokens again"
    )
