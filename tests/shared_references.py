"""What PyTorch says of a checkpoint and a batch, computed once a process."""

from __future__ import annotations

from typing import Any

import numpy as np

from doge_export.checkpoint import Checkpoint
from doge_export.package.fingerprint import fingerprint
from doge_export.validation import references
from doge_export.validation.oracle import Oracle, ReferenceRun

load_oracle = references.load_oracle
"""The real one."""


def _remembering(oracle: Oracle) -> Oracle:
    """Let `run` and `generate` of an oracle compute each answer once. Its arrays are then read-only."""
    compute, generate = oracle.run, oracle.generate
    runs: dict[Any, ReferenceRun] = {}
    answers: dict[Any, list[int]] = {}

    def run(ids: np.ndarray, mask: np.ndarray, chunks: Any, *, noise: int | None = None) -> ReferenceRun:
        key = (ids.shape, ids.tobytes(), mask.tobytes(), tuple(chunks), noise)
        if key not in runs:
            runs[key] = compute(ids, mask, chunks, noise=noise)
            for array in (runs[key].logits, runs[key].gaps, *runs[key].keys, *runs[key].values):
                array.setflags(write=False)
        return runs[key]

    def remembered(prompt: Any, new_tokens: int) -> list[int]:
        key = (tuple(prompt), new_tokens)
        if key not in answers:
            answers[key] = generate(prompt, new_tokens)
        return list(answers[key])

    vars(oracle).update(run=run, generate=remembered)
    return oracle


_oracles: dict[Any, Oracle] = {}


def load_shared(checkpoint: Checkpoint, cdmoe_routing: Any) -> Oracle:
    """As `load_oracle`; checkpoints of the same content share one."""
    files = sorted(path for path in checkpoint.source.folder.iterdir() if path.is_file())
    content = tuple((path.name, fingerprint(path).sha256) for path in files)
    key = (content, repr(checkpoint.architecture), cdmoe_routing)
    if key not in _oracles:
        _oracles[key] = _remembering(load_oracle(checkpoint, cdmoe_routing))
    return _oracles[key]
