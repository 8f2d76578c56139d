"""Predictions of the next token, read from the decoder only as far as a sampler asks."""

from __future__ import annotations

import numpy as np

Candidates = tuple[np.ndarray, np.ndarray]
"""Token ids to choose from, int64 [n] in ascending order, and their scores, float32 [n]."""


class Prediction:
    """Prediction of the next token of one row; valid until the decoder runs again."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def logits(self) -> np.ndarray:
        """Return the logits, float32 [V]."""
        return self._logits

    def argmax(self) -> int:
        """Return the id of the highest logit, the lowest of several."""
        return int(self._logits.argmax())

    def candidates(self, count: int) -> Candidates:
        """Return the best tokens with their logits.

        Args:
            count: number of tokens wanted; 0 for all.

        Returns:
            At least `count` tokens, including all that equal the last of them but for rounding.
        """
        return np.arange(len(self._logits)), self._logits


def predictions(logits: np.ndarray) -> list[Prediction]:
    """Return the prediction of each row, from the logits of its newest tokens, float32 [B, S, V]."""
    return [Prediction(row) for row in logits[:, -1]]
