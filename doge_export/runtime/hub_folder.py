"""Exported folders on the Hugging Face hub: fetched into the cache, file by file as their manifest lists them."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest
from doge_export.paths import EXPORTED, HUB_ID, check_path_text, exists, expanded

if TYPE_CHECKING:
    from doge_export.checkpoint.hub import Hub


def local_folder(folder: str | Path) -> Path:
    """Return the path of an exported folder; that of a hub id `owner/name` is fetched into the cache first.

    A path that exists goes before a hub id. So does one whose first part is a folder: it is a misspelt path.

    Raises:
        DogeExportError: the repository cannot be had, or holds no exported folder.
    """
    check_path_text(folder)
    path, name = Path(folder), Path(folder).as_posix()
    if exists(path) or not HUB_ID.fullmatch(name) or exists(path.parent):
        return path
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DogeExportError(
            f"folder {name} does not exist; to fetch an export of that name from the hub, install huggingface_hub"
        )
    from doge_export.checkpoint.hub import Hub

    repository = Hub(name)
    try:
        found = repository.download([EXPORTED])
    except DogeExportError as error:
        raise DogeExportError(f"folder {name} does not exist, and as a hub id: {error}") from error
    if not exists(found / EXPORTED):
        raise DogeExportError(
            f"{name!r} on the hub is not an exported folder (no {EXPORTED}): `doge-export onnx {name} OUT` exports it"
        )
    return _whole(repository, found)


def export_on_hub(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
) -> Path | None:
    """Fetch the exported folder that a hub id names; None if it names something else, or nothing.

    Args:
        name: what may be a hub id.
        revision, token, cache_dir, offline: as for `open_checkpoint`.

    Raises:
        DogeExportError: there is an exported folder, and it cannot be had whole.
    """
    if not HUB_ID.fullmatch(name) or exists(Path(name)) or exists(Path(name).parent):
        return None
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from doge_export.checkpoint.hub import Hub

    repository = Hub(name, revision, token, expanded(cache_dir) if cache_dir else None, offline)
    try:
        found = repository.download([EXPORTED])
    except DogeExportError:
        return None
    return _whole(repository, found) if exists(found / EXPORTED) else None


def _whole(repository: Hub, snapshot: Path) -> Path:
    """Fetch the files that the manifest in a snapshot lists; return the folder of the snapshot."""
    pinned = dataclasses.replace(repository, revision=snapshot.name)
    return pinned.download([glob.escape(file) for file in (EXPORTED, *read_manifest(snapshot).files)], nested=True)
