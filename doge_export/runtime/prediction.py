"""What a decoder says of the next token, as far as whoever chooses it asks."""

from __future__ import annotations

import numpy as np

Candidates = tuple[np.ndarray, np.ndarray]
"""Token ids int64 [n], ascending, and their scores float32 [n]."""


class Prediction:
    """What a decoder says of the next token of one row; good until it runs again."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def logits(self) -> np.ndarray:
        """float32 [V]."""
        return self._logits

    def argmax(self) -> int:
        """The lowest id among those of the highest logit."""
        return int(self._logits.argmax())

    def candidates(self, count: int) -> Candidates:
        """The `count` best at least, and all as good as the last of these but for rounding; count 0: every token."""
        return np.arange(len(self._logits)), self._logits


def predictions(logits: np.ndarray) -> list[Prediction]:
    """Of each row, from logits float32 [B, S, V] of its newest tokens."""
    return [Prediction(row) for row in logits[:, -1]]
