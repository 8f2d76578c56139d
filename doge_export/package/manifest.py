"""`doge_export.json`: where a folder came from, what is in it, and the sha256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from doge_export.errors import DogeExportError

MANIFEST_NAME = "doge_export.json"
FORMAT = 1

# What git, the hub's client and the macOS Finder leave in a downloaded folder; nothing of it is ever loaded.
_NOT_OURS = {".git", ".gitattributes", ".cache", ".DS_Store"}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `manifest` with a "files" entry for every other file of `folder`, and returns what was written.

    "files" is {relative path with slashes: {"sha256": hex, "bytes": int}}.
    """
    files = {name: fingerprint(folder / name) for name in sorted(_names_in(folder))}
    complete = {"format": FORMAT, **manifest, "files": files}
    text = json.dumps(complete, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return complete


def fingerprint(file: Path) -> dict[str, Any]:
    """{"sha256": hex, "bytes": int} of a file, read in pieces."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": digest, "bytes": stream.tell()}


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of an exported folder. Raises DogeExportError when there is none that this version reads."""
    folder = Path(folder)
    file = folder / MANIFEST_NAME
    if not folder.exists():
        raise DogeExportError(f"folder {folder} does not exist; `doge-export onnx MODEL {folder}` would write it")
    if not folder.is_dir():
        raise DogeExportError(f"{folder} is a file; name the folder that `doge-export onnx` wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DogeExportError(
            f"{folder} has no {MANIFEST_NAME}, so it is not an exported folder; `doge-export onnx MODEL OUT` writes one"
        ) from error
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error
    except ValueError as error:
        raise DogeExportError(f"{file} is not JSON ({error}); export the model again") from error
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(written, int) or not isinstance(manifest.get("files"), dict):
        raise DogeExportError(f"{file} is not a manifest of doge-export; export the model again")
    if written > FORMAT:
        raise DogeExportError(
            f"{file} has format {written}, this doge-export reads up to {FORMAT}; install a newer doge-export"
        )
    return manifest


def verify_files(folder: Path | str) -> list[str]:
    """Compares every file with the manifest. Returns one sentence a difference, empty when there is none.

    Differences are missing, changed and unexpected files, symbolic links, and names that leave the folder. The
    manifest itself carries no signature: this finds damage and edits, not a forger who rewrites the manifest too.
    """
    folder = Path(folder)
    recorded: dict[str, Any] = read_manifest(folder)["files"]
    present = _names_in(folder)
    problems = []
    for name, expected in sorted(recorded.items()):
        if not _stays_inside(name):
            problems.append(f"{name}: the manifest names a file outside the folder")
        elif name not in present:
            problems.append(f"{name}: missing")
        elif _passes_link(folder, name):
            problems.append(f"{name}: a symbolic link where a file was written")
        elif not isinstance(expected, dict) or "sha256" not in expected:
            problems.append(f"{name}: the manifest has no sha256 for it")
        else:
            found = fingerprint(folder / name)
            if found["sha256"] != expected["sha256"]:
                problems.append(
                    f"{name}: changed (sha256 {found['sha256'][:12]}…, {found['bytes']} bytes; "
                    f"the manifest says {str(expected['sha256'])[:12]}…, {expected.get('bytes')} bytes)"
                )
    problems += [f"{name}: unexpected, not in the manifest" for name in sorted(present - set(recorded))]
    return problems


def verify(folder: Path | str) -> dict[str, Any]:
    """The manifest of a folder whose files are all as it says. Raises DogeExportError naming the first that is not."""
    problems = verify_files(folder)
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DogeExportError(f"{folder} differs from its manifest: {problems[0]}{others}; export or download it again")
    return read_manifest(folder)


def _names_in(folder: Path) -> set[str]:
    """Relative names of all files but the manifest. Links count as files and are not followed."""
    names = set()
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        linked = [name for name in folders if (here / name).is_symlink()]
        if here == folder:
            folders[:] = [name for name in folders if name not in _NOT_OURS]
        names |= {(here / name).relative_to(folder).as_posix() for name in [*files, *linked]}
    return {name for name in names if name != MANIFEST_NAME and name not in _NOT_OURS}


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _passes_link(folder: Path, name: str) -> bool:
    path = folder / name
    return any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder) and part != folder)
