"""Reading a checkpoint: a local folder or hub id becomes an `Architecture` and tensors by canonical name.

Names are imported lazily, so that importing `Architecture` needs neither torch nor safetensors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting, Moe, Rope
    from doge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Architecture", "CdmoeRouting", "Checkpoint", "Moe", "Rope", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "checkpoint" if name in ("Checkpoint", "open_checkpoint") else "architecture"
    return getattr(import_module(f"{__name__}.{module}"), name)
