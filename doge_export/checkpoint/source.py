"""Finding a checkpoint's files: in a folder, among the bundled models, or in a repository on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from doge_export.assets import BUNDLED, bundled
from doge_export.checkpoint.files import INDEX, WEIGHTS
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.paths import EXPORTED, HUB_ID, exists, expanded

_TRAINING_STATE = {"training_args.bin", "optimizer.pt", "scheduler.pt"}
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


@dataclass(frozen=True)
class Source:
    """A folder with the files of a checkpoint.

    Attributes:
        name: what the user typed.
        folder: path of the folder, in the cache for a hub repository.
        revision: full commit sha of a hub repository; None for a local folder.
    """

    name: str
    folder: Path
    revision: str | None = None


def locate(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Source:
    """Find a checkpoint, and download it if it is on the hub.

    Args:
        model: an existing folder, else the name of a bundled model, else a hub id `owner/name`.
        revision: branch, tag or commit of a hub repository.
        token: access token for private and gated repositories; by default the one huggingface_hub finds.
        cache_dir: folder of downloads; by default the cache of huggingface_hub.
        offline: use cached files only.
        weights: False fetches the small files only, so that a wrong model is refused before gigabytes arrive.

    Raises:
        DogeExportError: there is no such folder, repository or revision, no access, no network, or no safetensors.
    """
    name = str(model)
    folder = expanded(name)
    if name and exists(folder) and folder.is_dir():
        if revision is not None:
            raise DogeExportError(f"{name!r} is a local folder: --revision is for hub ids only")
        names = _names(folder)
        _refuse_export(name, folder, names)
        if weights:
            _require_safetensors(name, names)
        return Source(name, folder)
    if name in BUNDLED:
        return Source(name, bundled(name))
    _require_hub_id(name, folder)

    from doge_export.checkpoint import hub

    repository = hub.Hub(name, revision, token, expanded(cache_dir) if cache_dir else None, offline)
    snapshot = repository.download_model(hub.WEIGHTS if weights else [])
    if weights:
        # Only safetensors are downloaded, so the hub must tell which other weights there are.
        if not {WEIGHTS, INDEX} & _names(snapshot):
            _require_safetensors(name, repository.list_files())
        for file in snapshot.glob("*.safetensors"):
            hub.check_blob(file)
    return Source(name, snapshot, snapshot.name)


def _names(folder: Path) -> set[str]:
    try:
        return {file.name for file in folder.iterdir()}
    except FileNotFoundError:  # a snapshot of no files is a folder that does not exist
        return set()
    except OSError as error:
        raise DogeExportError(f"{folder} cannot be read: {error.strerror}") from error


def _require_hub_id(name: str, path: Path) -> None:
    if not name.strip():
        raise DogeExportError("no model given: name a folder or a hub id (owner/name)")
    if "://" in name:
        raise DogeExportError(f"{name!r} is an address: give a folder or a hub id (owner/name)")
    if exists(path):
        raise DogeExportError(f"{name!r} is a file: give the folder that holds config.json and the safetensors files")
    if "/" not in name and re.fullmatch(r"[\w.-]+", name) and name.strip("."):
        raise DogeExportError(
            f"there is no folder {name!r}: check the path; a hub id is owner/name; bundled are {', '.join(BUNDLED)}"
        )
    if not HUB_ID.fullmatch(name):
        raise DogeExportError(f"there is no folder {name!r}: check the path")


def _refuse_export(name: str, folder: Path, files: set[str]) -> None:
    if EXPORTED in files and not {WEIGHTS, INDEX} & files:
        source = read_object(folder / EXPORTED).get("source")
        made_from = source.get("model") if isinstance(source, dict) else None
        raise DogeExportError(
            f"{name!r} is an exported folder, not a checkpoint: give the one that it was made from"
            + (f", {made_from!r}" if made_from else "")
        )


def _require_safetensors(name: str, files: Iterable[str]) -> None:
    """Refuse a checkpoint without safetensors, and say how to convert pickled weights."""
    files = sorted(files)
    if EXPORTED in files and not {WEIGHTS, INDEX} & {*files}:
        raise DogeExportError(
            f"{name!r} is an exported folder, not a checkpoint: `doge-export generate {name} PROMPT` runs it"
        )
    if WEIGHTS in files or INDEX in files:
        return
    pickled = [file for file in files if Path(file).suffix in _PICKLED and Path(file).name not in _TRAINING_STATE]
    if pickled:
        raise DogeExportError(
            f"{name!r} has only pickled weights ({_few(pickled)}), which can run code when loaded and are never read:"
            " rewrite them in Python, where this runs no code of theirs: safetensors.torch.save_file({name:"
            " tensor.clone() for name, tensor in torch.load(FILE, weights_only=True).items()}, 'model.safetensors')"
        )
    others = [file for file in files if file.endswith(".safetensors")]
    seen = f" (seen: {_few(others)})" if others else ""
    raise DogeExportError(f"{name!r} has neither {WEIGHTS} nor {INDEX}{seen}: no weights to export")


def _few(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
