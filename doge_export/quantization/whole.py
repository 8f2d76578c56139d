"""Running a graph over whole texts, one at a time, from an empty cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from doge_export.runtime.graph import CACHE_TYPES
from doge_export.runtime.threads import most_threads


class WholeTexts:
    """Runs a graph of any target and task on one text after another.

    Args:
        file: the graph.
        packs: let onnxruntime keep a second copy of float32 weights, in the order that is fastest for single tokens.
        threads: for one operator; by default onnxruntime's choice.
    """

    def __init__(self, file: Path, *, packs: bool = True, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if not packs:
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or most_threads()
        self._session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        self.output: str = self._session.get_outputs()[0].name
        """Name of the first output: logits or last_hidden_state."""

    def run(
        self, ids: np.ndarray, outputs: Sequence[str] | None = None, others: Mapping[str, np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Run one text.

        Args:
            ids: token ids, int64 [S].
            outputs: names of the outputs that are wanted; by default only `output`, [1, S, ...].
            others: inputs that no exported graph has, for a graph that was changed.
        """
        return list(self._session.run(list(outputs or [self.output]), self._feeds(ids[None], others or {})))

    def _feeds(self, ids: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all inputs: empty caches, with room for this text where they are written in place."""
        length = ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "past_length": np.array([0], np.int64),
            "total_length": np.array([length], np.int64),
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array(length, np.int32),
            **others,
        }
        extents = {"batch_size": 1, "sequence_length": length, "capacity": length}
        extents |= {"past_sequence_length": 0, "slots": 0}
        feeds: dict[str, np.ndarray] = {}
        feeds |= {  # of a portable graph the default is the last token alone
            value.name: np.array(0, np.int64)
            for value in self._session.get_overridable_initializers()
            if value.name == "num_logits_to_keep"
        }
        for value in self._session.get_inputs():
            if value.name in given:
                feeds[value.name] = given[value.name]
            else:
                shape = [axis if isinstance(axis, int) else extents[axis] for axis in value.shape]
                feeds[value.name] = np.zeros(shape, CACHE_TYPES[value.type])
        return feeds
