"""`doge_export.json`: where a folder came from, what is in it, and the sha256 of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from doge_export.checkpoint.architecture import Task
from doge_export.checkpoint.identify import Assumptions
from doge_export.errors import DogeExportError
from doge_export.paths import EXPORTED, exists

MANIFEST_NAME = EXPORTED
FORMAT = 1

_SINCE_THEN = {"task": "text-generation", "assumptions": {}}
"""What a folder without these keys is: they came after the first folders of this format were written."""

_ASSUMED = {field.name for field in dataclasses.fields(Assumptions)}

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


def validation_line(manifest: Mapping[str, Any]) -> str:
    """What the validation said, in one line."""
    validation = manifest["validation"]
    if "skipped" in validation:
        return f"not validated ({validation['skipped']})"
    return str(validation.get("summary") or ("PASSED" if validation["passed"] else "FAILED"))


def is_exported(folder: Path | str) -> bool:
    """Whether there is a manifest, so that a folder is taken for an exported one and not for a checkpoint."""
    return exists(Path(folder) / MANIFEST_NAME)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of an exported folder. Raises DogeExportError when there is none that this version reads."""
    folder = Path(folder)
    file = folder / MANIFEST_NAME
    if not exists(folder):
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
    if not isinstance(manifest, dict):
        raise DogeExportError(f"{file} is not a manifest of doge-export; export the model again")
    manifest = {**_SINCE_THEN, **manifest}
    _check(manifest, file)
    return manifest


def _check(manifest: dict[str, Any], file: Path) -> None:
    """Raises DogeExportError unless `manifest` has every value that a reader relies on."""
    for key, (is_valid, expected) in _VALUES.items():
        if key not in manifest:
            raise DogeExportError(f"{file} lacks {key}, expected {expected}; export the model again")
        value = manifest[key]
        if not is_valid(value):
            raise DogeExportError(
                f"{file}: {key} is {reprlib.repr(value)}, expected {expected}; export the model again"
            )
        if key == "format" and value > FORMAT:  # whose other values may be of any kind
            raise DogeExportError(
                f"{file} has format {value}, this doge-export reads up to {FORMAT}; install a newer doge-export"
            )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_graph(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("opset"), dict)
        and {"dtype", "ir_version", "nodes"} <= {*value}
    )


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str) and _is_count(value.get("bytes"), 0)


# In the order in which they are looked at: the format says whether the others can be understood.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: _is_count(value, 1), "a number from 1"),
    "doge_export": (lambda value: isinstance(value, str), "a version"),
    "source": (
        lambda value: isinstance(value, dict) and isinstance(value.get("model"), str) and "revision" in value,
        'an object with a "model" and a "revision"',
    ),
    "architecture": (lambda value: isinstance(value, dict), "an object"),
    "graphs": (
        lambda value: isinstance(value, dict) and all(map(_is_graph, value.values())),
        "an object with the dtype, opset, ir_version and nodes of each graph",
    ),
    "task": (lambda value: value in get_args(Task), f"one of {', '.join(get_args(Task))}"),
    "assumptions": (
        lambda value: isinstance(value, dict) and value.keys() <= _ASSUMED and all(map(_is_text, value.values())),
        f"an object with texts for some of {', '.join(sorted(_ASSUMED))}",
    ),
    "target": (lambda value: isinstance(value, str), "the name of a target"),
    "max_length": (lambda value: _is_count(value, 1), "a number of tokens from 1"),
    "chunkable_length": (lambda value: _is_count(value, 0), "a number of tokens from 0"),
    "cdmoe_routing": (lambda value: value in (None, "reference", "per-token"), "reference, per-token or null"),
    "validation": (
        lambda value: isinstance(value, dict) and bool({"skipped", "passed"} & {*value}),
        'an object with "passed" or "skipped"',
    ),
    "files": (
        lambda value: isinstance(value, dict) and all(map(_is_fingerprint, value.values())),
        "an object with the sha256 and bytes of each file",
    ),
}


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
        else:
            found = fingerprint(folder / name)
            if found["sha256"] != expected["sha256"]:
                problems.append(
                    f"{name}: changed (sha256 {found['sha256'][:12]}…, {found['bytes']} bytes; "
                    f"the manifest says {expected['sha256'][:12]}…, {expected['bytes']} bytes)"
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
