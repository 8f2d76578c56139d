"""Predictions of the next token, read from the decoder only as far as a sampler asks."""

from __future__ import annotations

import numpy as np

from doge_export.errors import RunFailed

Candidates = tuple[np.ndarray, np.ndarray]
"""Token ids to choose from, int64 [n] in ascending order, and their scores, float32 [n]."""


def check_best(logit: float) -> None:
    """Refuse the highest logit of a token if it is NaN (as it is where any logit is) or infinite.

    Raises:
        RunFailed: it is not finite.
    """
    if not np.isfinite(logit):
        raise RunFailed(
            "the model gives logits that are not finite, so no token can be chosen: its weights or its precision are "
            "broken (doge-export validate FOLDER says where)"
        )


class Prediction:
    """Prediction of the next token of one row; valid until the decoder runs again."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def logits(self) -> np.ndarray:
        """Return the logits, float32 [V]."""
        return self._logits

    def argmax(self) -> int:
        """Return the id of the highest logit, the lowest of several.

        Raises:
            RunFailed: it is NaN or infinite.
        """
        best = int(self._logits.argmax())  # of a NaN, where there is one
        check_best(self._logits[best])
        return best

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
