"""The head of a classifier behind the native decoder, which computes hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from doge_export.checkpoint.architecture import Architecture
from doge_export.package.onnx_weights import OnnxWeights
from doge_export.runtime.native.graph_weights import GraphWeights, Unexpected
from doge_export.runtime.native.support import NotNative

_HEAD = "score.weight_t"


class Classifier:
    """Class scores of the one token that stands for its row; `model.heads.DogeForClassification` says which.

    Args:
        weights: of the head, float32 [labels, H].
        pad_token_id: id of padding; None takes the last token of the mask.
        first_pad_pooling: the token before the first padding stands for a row, as in the oldest generations.
    """

    def __init__(self, weights: np.ndarray, pad_token_id: int | None, first_pad_pooling: bool) -> None:
        self._weights, self._pad, self._is_before_padding = weights, pad_token_id, first_pad_pooling

    @classmethod
    def of(cls, graph: Path, architecture: Architecture) -> Self:
        """Read the head from a graph.

        Raises:
            NotNative: the graph has none of the architecture's shape.
            DogeExportError: the graph cannot be read.
        """
        labels, hidden = len(architecture.labels), architecture.hidden_size
        with OnnxWeights(graph) as weights:
            try:
                parts = GraphWeights(weights).linear(_HEAD, {_HEAD: labels}, hidden)
            except Unexpected as error:
                raise NotNative(f"the graph is not as this version writes it: {error}") from error
            head = np.concatenate([part.float32() for part in parts])
        return cls(head, architecture.pad_token_id, architecture.first_pad_pooling)

    def __call__(self, hidden: np.ndarray, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return scores, float32 [B, labels], of hidden states [B, S, H]; ids and mask are int64 [B, S]."""
        last = self._standing_for(input_ids, attention_mask)
        return hidden[np.arange(len(hidden)), last] @ self._weights.T

    def _standing_for(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        tokens = input_ids.shape[1]
        places = np.arange(tokens)
        if self._pad is None:
            return (places * attention_mask).max(axis=1)
        if self._is_before_padding:
            before = np.where(input_ids == self._pad, places, tokens).min(axis=1) - 1
            return np.where(before < 0, tokens - 1, before)
        return (places * (input_ids != self._pad)).max(axis=1)
