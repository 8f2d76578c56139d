"""Predictions of the next token, read from the decoder only as far as a sampler asks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from doge_export.errors import RunFailed

Candidates = tuple[np.ndarray, np.ndarray]
"""Token ids to choose from, int64 [n] in ascending order, and their scores, float32 [n]."""

ROUNDING = 1e-6
"""Relative error of a logit that bounds the rounding of its division by a temperature."""


def check_finite(values: np.ndarray | float, what: str = "logits") -> None:
    """Check that numbers of the model are finite.

    Raises:
        RunFailed: one of them is infinite or not a number.
    """
    if not (math.isfinite(values) if isinstance(values, float) else np.isfinite(values).all()):
        raise RunFailed(
            f"the model gives {what} that are not finite: nothing can be made of them; `doge-export verify` tells "
            "whether the folder is damaged, `doge-export validate` whether it ever was right"
        )


class Prediction:
    """Prediction of the next token of one row; valid until the decoder runs again.

    Logits are as the model gives them, which may not be finite: `argmax` refuses such, samplers do so too.
    """

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
        best = int(self._logits.argmax())  # of numbers with a NaN, the first NaN
        check_finite(float(self._logits[best]))
        return best

    def candidates(self, count: int) -> Candidates:
        """Return the best tokens with their logits.

        Args:
            count: number of tokens wanted; 0 for all.

        Returns:
            At least `count` tokens, including all that equal the last of them but for rounding.
        """
        logits = self.logits()
        return np.arange(len(logits)), logits


class BestTokens(Prediction):
    """Prediction from the K best tokens of a row.

    Args:
        tokens: ids [K], in any order.
        logits: float32 [K], of these tokens.
        everything: returns the logits of all tokens, float32 [V].
    """

    def __init__(self, tokens: np.ndarray, logits: np.ndarray, everything: Callable[[], np.ndarray]) -> None:
        order = np.argsort(tokens)
        self._tokens, self._best, self._everything = tokens[order].astype(np.int64), logits[order], everything

    def logits(self) -> np.ndarray:
        """Return the logits of all tokens, float32 [V]."""
        return self._everything()

    def argmax(self) -> int:
        """Return the lowest id among those of the highest logit; if K is 1, any of them."""
        if len(self._best) > 1 and not self._best.min() < self._best.max():  # tokens beyond the K may tie; or NaN
            return Prediction(self.logits()).argmax()
        best = self._best.argmax()
        check_finite(float(self._best[best]))
        return int(self._tokens[best])

    def candidates(self, count: int) -> Candidates:
        """See `Prediction.candidates`."""
        if 0 < count < len(self._best):
            edge = np.partition(self._best, -count)[-count]
            if self._best.min() < edge - ROUNDING * abs(edge):  # a missing token is no better than the worst here
                return self._tokens, self._best
        logits = self.logits()
        return np.arange(len(logits)), logits


def predictions(logits: np.ndarray) -> list[Prediction]:
    """Return the prediction of each row, from the logits of its newest tokens, float32 [B, S, V]."""
    return [Prediction(row) for row in logits[:, -1]]
