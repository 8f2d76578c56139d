"""Session of a folder exported for feature-extraction: hidden states and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.prediction import check_finite
from doge_export.runtime.single_pass import Advance, SinglePassSession

Pooling = Literal["mean", "last"]

_POOL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda states: states.mean(axis=0),
    "last": lambda states: states[-1].copy(),
    "none": lambda states: states.copy(),  # a view would keep the padding of its batch
}


class FeatureSession(SinglePassSession):
    """A Doge without a head, equal to transformers' `DogeModel`."""

    task = "feature-extraction"

    def hidden_states(self, input_ids: Any, attention_mask: Any = None) -> np.ndarray:
        """Compute the last hidden state of every token, all rows in one run.

        Args:
            input_ids: token ids [S] or [B, S].
            attention_mask: the same shape, 0 for padding, on either side; None without padding. As in transformers,
                positions count from 0 whatever the mask is.

        Returns:
            float32 [B, S, H]; the values at padding have no meaning.

        Raises:
            DogeExportError: an id is out of range, or there are more than max_length tokens.
        """
        return self._forward(input_ids, attention_mask)

    @overload
    def embed(
        self,
        texts: Any,
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        truncate: bool = False,
        batch_size: int = 32,
        on_progress: Advance | None = None,
    ) -> np.ndarray: ...

    @overload
    def embed(
        self,
        texts: Any,
        *,
        pooling: Literal["none"],
        normalize: bool = False,
        truncate: bool = False,
        batch_size: int = 32,
        on_progress: Advance | None = None,
    ) -> list[np.ndarray]: ...

    def embed(
        self,
        texts: Any,
        *,
        pooling: Pooling | Literal["none"] = "mean",
        normalize: bool = False,
        truncate: bool = False,
        batch_size: int = 32,
        on_progress: Advance | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Compute a vector for each text.

        Args:
            texts: a text or token ids (a list of int, an array [S]), or a list of those.
            pooling: "mean" of the hidden states of all tokens, including those that the tokenizer adds; "last", the
                state of the last token, the only one that has read all others; "none", the states of all tokens.
            normalize: scale every vector to length 1, so that a dot product is the cosine of the angle.
            truncate: cut texts of more than max_length tokens at their end, instead of refusing them.
            batch_size: largest number of texts in a run; long texts run in smaller batches. No vector depends on it,
                nor on the other texts.
            on_progress: called after each run with the number of texts in that run.

        Returns:
            float32 [N, H], also [1, H] for a single text; with pooling "none" a list of N arrays [S_i, H].

        Raises:
            DogeExportError: a text is empty or too long; raised before anything runs.
            RunFailed: the model gives hidden states that are not finite.
        """
        if pooling not in _POOL:
            raise DogeExportError(f"pooling is {pooling!r}, expected one of {', '.join(_POOL)}")
        pool = _POOL[pooling]

        def vectors(states: np.ndarray) -> np.ndarray:
            check_finite(states, "hidden states")
            return _normalized(pool(states)) if normalize else pool(states)

        found = self._each(texts, vectors, truncate, batch_size, on_progress)
        if pooling == "none":
            return found
        return np.array(found, np.float32).reshape(-1, self.manifest.architecture["hidden_size"])


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1; a vector of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
