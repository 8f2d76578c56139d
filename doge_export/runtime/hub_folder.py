"""Exported folders on the Hugging Face hub: fetched into the cache, file by file as their manifest lists them."""

from __future__ import annotations

import glob
import importlib.util
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest
from doge_export.paths import EXPORTED, HUB_ID, check_path_text, exists


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
    pinned = Hub(name, revision=found.name)
    return pinned.download([glob.escape(file) for file in (EXPORTED, *read_manifest(found).files)], nested=True)
