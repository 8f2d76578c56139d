"""What computes features or classes: token ids and a mask in, one array out, nothing kept between calls."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnxruntime

from doge_export.runtime.graph import running
from doge_export.runtime.native.classifier import Classifier
from doge_export.runtime.native.interface import Call, Kind, MoeKind, NativeModel, failing_weights

_TOGETHER = 1024
"""Most tokens that the native decoder caches at once: caches of all layers would outgrow the weights of small models,
and more tokens read together are no faster."""
_PAGE = 256
"""Tokens that caches grow by."""


class OneCall(Protocol):
    """A model of one of these tasks, which threads may share."""

    @property
    def computes_by(self) -> str:
        """What runs it, in words."""
        ...

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return hidden states [B, S, H] or class scores [B, labels] of ids [B, S]; in the mask, 0 is padding."""
        ...


class GraphCall:
    """onnxruntime over a graph of interface one-call.

    Args:
        session: the graph.
    """

    computes_by = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See `OneCall`."""
        with running():
            (output,) = self._session.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})
        return output


class NativeCall:
    """The native decoder, whose hidden states a classifier may judge.

    Each call has caches of its own; calls at the same time wait for each other.

    Args:
        model: opened weights.
        classifier: what turns hidden states into class scores; None returns the states.
    """

    def __init__(self, model: NativeModel, classifier: Classifier | None = None) -> None:
        self._model, self._classifier = model, classifier

    @property
    def computes_by(self) -> str:
        """See `OneCall`."""
        return self._model.described

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """See `OneCall`."""
        batch, tokens = input_ids.shape
        ids = np.ascontiguousarray(input_ids, np.int64)
        mask = np.ascontiguousarray(attention_mask, np.int64)
        hidden = np.empty((batch, tokens, self._model.config.hidden_size), np.float32)
        # Rows do not see each other, unless the router mixes all tokens of a call.
        mixes = self._model.config.moe == MoeKind.REFERENCE
        rows = batch if mixes else max(_TOGETHER // (-(-tokens // _PAGE) * _PAGE), 1)
        for first in range(0, batch, rows):
            self._read(ids[first : first + rows], mask[first : first + rows], hidden[first : first + rows])
        return hidden if self._classifier is None else self._classifier(hidden, ids, mask)

    def _read(self, ids: np.ndarray, mask: np.ndarray, hidden: np.ndarray) -> None:
        batch, tokens = ids.shape
        positions = np.ascontiguousarray(np.broadcast_to(np.arange(tokens), ids.shape), np.int64)
        call = Call(
            tokens=tokens,
            ids=ids.ctypes.data,
            mask=mask.ctypes.data,
            positions=positions.ctypes.data,
            hidden=hidden.ctypes.data,
        )
        with failing_weights():
            self._model.state(batch, Kind.FLOAT32, tokens).run(call)
