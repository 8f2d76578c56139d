"""File of a conversation's state: the slots of the cache and the ids behind them, so that another process goes on.

It is a safetensors file. Its metadata name the graph that filled the cache and hold a checksum of the arrays, since
keys of another model, or a changed bit, would give wrong answers without a sign.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.package.atomic_file import written_file
from doge_export.package.manifest import Manifest
from doge_export.regular_file import read_regular

FORMAT = "doge-export state 1"
IDS = "token_ids"
LARGEST = 8 * 2**30
"""Bytes of the largest state that is read."""


@dataclasses.dataclass(frozen=True)
class State:
    """What a session has read.

    Attributes:
        graph: hash of the graph whose decoder filled the cache, see `graph_digest`.
        form: `Decoder.state_form` of that decoder.
        token_ids: ids in the cache, int32 [length].
        cache: arrays of `Decoder.state`.
        conversation: what a chat adds, as JSON values; empty for none.
    """

    graph: str
    form: str
    token_ids: np.ndarray
    cache: Mapping[str, np.ndarray]
    conversation: Mapping[str, Any]


def graph_digest(manifest: Manifest, graph: str) -> str:
    """Return a hash of a graph and its weights, from the manifest's hashes of their files."""
    parts = (manifest.files[name].sha256 for name in (graph, f"{graph}_data") if name in manifest.files)
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def write_state(file: Path, state: State) -> None:
    """Write a state; the old file stays until the new one is whole.

    Raises:
        DogeExportError: the file cannot be written.
        RunFailed: the disk is full.
    """
    from safetensors.numpy import save

    arrays = {**state.cache, IDS: state.token_ids}
    metadata = {
        "format": FORMAT,
        "graph": state.graph,
        "form": state.form,
        "conversation": json.dumps(dict(state.conversation), ensure_ascii=False),
    }
    content = save(arrays, metadata | {"sha256": _checksum(arrays, metadata)})
    with written_file("the state", file) as stream:
        stream.write(content)


def read_state(file: Path) -> State:
    """Read what `write_state` wrote.

    Raises:
        DogeExportError: the file cannot be read, is none, is damaged, or was written by a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = read_regular(file, LARGEST)
    except OSError as error:
        raise DogeExportError(f"cannot read the state {file}: {(error.strerror or str(error)).lower()}") from error
    try:
        arrays, metadata = load(content), _metadata(content)
        conversation = json.loads(metadata.get("conversation", "{}"))
        sha256 = metadata.pop("sha256", "")
        checksum = _checksum(arrays, metadata)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DogeExportError(f"{file} is no state of a session, or is damaged: save it again") from error
    form = metadata.get("format", "")
    if form != FORMAT:
        raise DogeExportError(
            f"{file} is of format {form[:40]!r}, this doge-export reads {FORMAT!r}: save it again with this version"
        )
    if sha256 != checksum or IDS not in arrays or not isinstance(conversation, dict):
        raise DogeExportError(f"{file} is damaged: its content has another checksum; save it again")
    ids = arrays.pop(IDS)
    return State(metadata.get("graph", ""), metadata.get("form", ""), ids, arrays, conversation)


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file that was loaded, which its library for arrays leaves out."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("metadata are no object")
    return {str(name): str(value) for name, value in metadata.items()}


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
    """Check names, shapes and types of the arrays of a state.

    Args:
        arrays: those of a state.
        expected: shape and dtype by name.

    Raises:
        DogeExportError: one is missing, too many, or of another shape or type.
    """
    for name in sorted({*arrays, *expected}):
        found = (arrays[name].shape, arrays[name].dtype) if name in arrays else None
        wanted = (tuple(expected[name][0]), np.dtype(expected[name][1])) if name in expected else None
        if found != wanted:
            raise DogeExportError(
                f"the state's {name} is {_named(found)}, expected {_named(wanted)}: it is of another session"
            )


def _named(what: tuple[tuple[int, ...], Any] | None) -> str:
    return "not there" if what is None else f"{what[1]} {list(what[0])}"


def as_ids(token_ids: np.ndarray, vocab_size: int, max_length: int) -> array[int]:
    """Return the ids of a state.

    Raises:
        DogeExportError: they are none of this model, or more than it holds.
    """
    is_row = token_ids.ndim == 1 and token_ids.dtype == np.int32
    if not is_row or len(token_ids) > max_length or (token_ids < 0).any() or (token_ids >= vocab_size).any():
        raise DogeExportError("the state's token_ids are none of this model: load the folder that it was saved by")
    return array("i", token_ids.tolist())
