"""What a folder was made from and with: files taken over from the checkpoint, and entries of the manifest."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.checkpoint.files import CONFIG
from doge_export.package.manifest import fingerprint
from doge_export.paths import exists, expanded

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint


def copy_companions(files: Iterable[Path], folder: Path) -> None:
    """The files that tools look for beside a model, unchanged, into `folder`."""
    for file in files:
        # copyfile, not copy2: a hub cache holds links to read-only blobs.
        shutil.copyfile(file, folder / file.name)


def source_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The manifest's "source": the model's hub id or absolute path, its revision, and the files that were read."""
    source = checkpoint.source
    typed = expanded(source.name)
    files = [source.folder / CONFIG, *checkpoint.tensors.files]
    return {
        "model": str(typed.resolve()) if exists(typed) else source.name,
        "revision": source.revision,
        "files": {file.relative_to(source.folder).as_posix(): fingerprint(file) for file in files},
    }


def versions() -> dict[str, str]:
    """The manifest's "versions": of Python and of the libraries that make an export."""
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
