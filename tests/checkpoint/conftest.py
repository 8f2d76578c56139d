"""Checkpoints that tests read, copy and damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save_checkpoint
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied dense checkpoint; read only, tests that change it take `copy`."""
    return save_checkpoint(tmp_path_factory.mktemp("dense"))


@pytest.fixture
def copy(dense: Path, tmp_path: Path) -> Path:
    """A copy of `dense` that the test may damage."""
    return Path(shutil.copytree(dense, tmp_path / "model"))


@pytest.fixture
def edit_config(copy: Path) -> Callable[..., Path]:
    """Set keys of the copy's config.json; None as in JSON, `...` removes the key."""

    def edit(**changes: Any) -> Path:
        path = copy / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
        return copy

    return edit


@pytest.fixture
def edit_tensors(copy: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], Any]], Path]:
    """Rewrite the copy's weights after a change to the dictionary of its tensors."""

    def edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors")
        return copy

    return edit
