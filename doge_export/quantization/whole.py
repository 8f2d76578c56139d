"""Running a graph over whole texts, one at a time, with an empty cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from doge_export.runtime.graph import CACHE_TYPES


class WholeTexts:
    """A graph of any target and task, read text by text.

    packs: let onnxruntime keep float32 weights a second time, in the order that single tokens are multiplied fastest.
    """

    def __init__(self, file: Path, *, packs: bool = True, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if not packs:
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        self.output: str = self._session.get_outputs()[0].name
        """What the task is about: logits, or last_hidden_state."""

    def run(self, ids: np.ndarray, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
        """The outputs of that name for token ids int64 [S]; by default `output` alone, [1, S, ...]."""
        return list(self._session.run(list(outputs or [self.output]), self._feeds(ids[None])))

    def _feeds(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Nothing is cached, and a cache that is written in place has room for this text."""
        length = ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "past_length": np.array([0], np.int64),
            "total_length": np.array([length], np.int64),
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array(length, np.int32),
        }
        extents = {"batch_size": 1, "sequence_length": length, "capacity": length, "past_sequence_length": 0}
        feeds = {}
        for value in self._session.get_inputs():
            if value.name in given:
                feeds[value.name] = given[value.name]
            else:
                shape = [axis if isinstance(axis, int) else extents[axis] for axis in value.shape]
                feeds[value.name] = np.zeros(shape, CACHE_TYPES[value.type])
        return feeds
