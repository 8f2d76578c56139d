"""The C++ and CUDA sources of the plugin: their folder and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from doge_export.errors import DogeExportError

_PACKAGE = Path(__file__).resolve().parents[1]
NATIVE = ("cpu", "ort")
"""Folders of the native decoder: the decoder itself, and onnxruntime's operator of it."""
_NOT_BUILT = {"tests", "README.md", "__pycache__", *NATIVE}
"""Names of files and folders that the libraries are not made from; `NATIVE` makes one of its own."""


def plugin_sources() -> Path:
    """Return the folder of the plugin's CMakeLists.txt: inside an installed package, beside it in a checkout.

    Raises:
        DogeExportError: there is no such folder.
    """
    for folder in (_PACKAGE / "_plugins", _PACKAGE.parent / "plugins"):
        if (folder / "include" / "doge" / "operators.h").is_file():
            return folder
    raise DogeExportError(
        f"the plugin's sources are neither in {_PACKAGE} nor beside it; install doge-export again from its wheel"
    )


def source_hash(folder: Path) -> str:
    """Return the sha256 of names and contents of all files that the libraries are made from."""
    digest = hashlib.sha256()
    for path in _files(folder):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def native_hash(folder: Path) -> str:
    """Return the sha256 of all files that the native decoder is made from, below the plugin's folder."""
    return hashlib.sha256("".join(source_hash(folder / part) for part in NATIVE).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _NOT_BUILT & set(path.relative_to(folder).parts):
            yield path
