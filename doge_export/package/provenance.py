"""Provenance of a folder: the checkpoint and its companion files, and the libraries that made it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.checkpoint.files import CONFIG, packaged_name
from doge_export.package.fingerprint import fingerprint
from doge_export.package.manifest import AdapterEntry, SourceEntry
from doge_export.paths import exists, expanded

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint


def copy_companions(files: Iterable[Path], folder: Path, made: Mapping[str, bytes] | None = None) -> None:
    """Copy the files that tools look for beside a model into `folder`, unchanged, and write those that were made."""
    for file in files:
        # copyfile, not copy2: a hub cache holds links to read-only blobs.
        target = folder / packaged_name(file)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    for name, content in (made or {}).items():
        (folder / name).write_bytes(content)


def source_of(checkpoint: Checkpoint) -> SourceEntry:
    """Describe a checkpoint for the manifest."""
    source = checkpoint.source
    typed = expanded(source.name)
    files = [source.folder / CONFIG, *(file for file in checkpoint.tensors.files if file.parent == source.folder)]
    adapter = None
    if checkpoint.adapter is not None:
        merged = checkpoint.adapter.source
        adapter = AdapterEntry(
            model=str(merged.folder.resolve()) if merged.revision is None else merged.name,
            revision=merged.revision,
            files={file.name: fingerprint(file) for file in checkpoint.adapter.files},
        )
    return SourceEntry(
        model=str(typed.resolve()) if exists(typed) else source.name,
        revision=source.revision,
        adapter=adapter,
        files={file.relative_to(source.folder).as_posix(): fingerprint(file) for file in files},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that make an export."""
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
