"""Every generation and mixture of experts that `older_doge` writes, and how a test opens one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doge_export.checkpoint import Checkpoint, open_checkpoint
from doge_export.checkpoint.identify import Assumptions
from doge_export.errors import DogeExportError, RunFailed

ALL = ["G1", "G2-early", "G2", "G3a", "G3b", "G4a", "G4b", "G5", "G6a", "G6b", "G7", "G8"]
# What the files say where they leave something open: G4a has no key of its own that matters without a ratio.
TOLD = {"G2-early": "G2", "G4a": "G4b"}
MOES = {
    "G1": ["M0", "M0-shared"],
    "G2": ["M1"],
    "G3a": ["M1"],
    "G3b": ["M1"],
    "G4a": ["M1"],
    "G4b": ["M1", "M4", "M5", "M6", "M6-bias", "M7"],
    **{generation: ["M7"] for generation in ("G5", "G6a", "G6b", "G7", "G8")},
}
TOLD_MOE = {"M0-shared": "M0", "M5": "M4", "M6": "M7", "M6-bias": "M6"}


def opened(folder: Path, **assumed: Any) -> Checkpoint:
    return open_checkpoint(folder, assumed=Assumptions(**assumed))


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    """Of nine tokens, by our module: [1, 9, vocabulary]."""
    from doge_export.model import DogeForExport

    module = DogeForExport.from_tensors(checkpoint.architecture, checkpoint.tensors)
    return module(torch.arange(9)[None], torch.ones(1, 9, dtype=torch.int64), torch.arange(9)[None])[0].detach()


def refused(folder: Path, pattern: str, **assumed: Any) -> None:
    """Asserts that the folder is refused as a user's mistake, in one line that holds `pattern`."""
    with pytest.raises(DogeExportError, match=pattern) as caught:
        opened(folder, **assumed)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert not isinstance(caught.value, RunFailed)
