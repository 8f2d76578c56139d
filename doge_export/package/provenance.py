"""Provenance of a folder: the checkpoint and its companion files, and the libraries that made it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.checkpoint.files import CONFIG, TEMPLATES
from doge_export.package.fingerprint import fingerprint
from doge_export.package.manifest import SourceEntry
from doge_export.paths import exists, expanded

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint


def copy_companions(files: Iterable[Path], folder: Path) -> None:
    """Copy the files that tools look for beside a model into `folder`, unchanged."""
    for file in files:
        # copyfile, not copy2: a hub cache holds links to read-only blobs.
        target = folder / TEMPLATES if file.parent.name == TEMPLATES else folder
        target.mkdir(exist_ok=True)
        shutil.copyfile(file, target / file.name)


def source_of(checkpoint: Checkpoint) -> SourceEntry:
    """Describe a checkpoint for the manifest."""
    source = checkpoint.source
    typed = expanded(source.name)
    files = [source.folder / CONFIG, *checkpoint.tensors.files]
    return SourceEntry(
        model=str(typed.resolve()) if exists(typed) else source.name,
        revision=source.revision,
        files={file.relative_to(source.folder).as_posix(): fingerprint(file) for file in files},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that make an export."""
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
