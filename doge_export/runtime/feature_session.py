"""A folder exported for feature-extraction: hidden states and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.single_pass import Advance, SinglePassSession

Pooling = Literal["mean", "last"]

_POOL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda states: states.mean(axis=0),
    "last": lambda states: states[-1].copy(),
    "none": lambda states: states.copy(),  # a view would keep the padding of its batch
}


class FeatureSession(SinglePassSession):
    """The last hidden states of a Doge, transformers' `DogeModel`."""

    task = "feature-extraction"

    def hidden_states(self, input_ids: Any, attention_mask: Any = None) -> np.ndarray:
        """The last hidden state of every token, float32 [B, S, H], of rows that are read together as they are.

        input_ids: [S] or [B, S]. attention_mask: the same shape, 0 for padding, on either side; positions count from 0
        whatever it says, as in transformers. What stands in the places of padding is of no meaning.
        Raises DogeExportError for ids out of range and for more than max_length tokens.
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
        """One vector for each text, float32 [N, H]; [1, H] for a single one.

        Args:
            texts: a text or token ids (a list of int, an array [S]), or a list of those.
            pooling: "mean" of the text's tokens, those that the tokenizer adds included; its "last" one, the only one
                that has read all of them; "none" gives a list of N arrays [S_i, H] instead.
            normalize: scale every vector to length 1, so that a dot product is the cosine of the angle.
            truncate: cut texts of more than max_length tokens at their end, instead of refusing them.
            batch_size: texts in a run at most; long texts run in smaller batches. No vector depends on it, nor on the
                other texts.
            on_progress: called after each run with the number of texts it has done.

        Raises DogeExportError for a text that is empty or too long, before anything runs.
        """
        if pooling not in _POOL:
            raise DogeExportError(f"pooling is {pooling!r}, expected one of {', '.join(_POOL)}")
        pool = _POOL[pooling]

        def vectors(states: np.ndarray) -> np.ndarray:
            return _normalized(pool(states)) if normalize else pool(states)

        found = self._each(texts, vectors, truncate, batch_size, on_progress)
        if pooling == "none":
            return found
        return np.array(found, np.float32).reshape(-1, self.manifest.architecture["hidden_size"])


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; a vector of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
