"""Addition of graphs in fewer bits to an exported folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.installing import need
from doge_export.package import Manifest, leftovers, read_manifest, verify
from doge_export.package.manifest import MODEL
from doge_export.pipeline.folder import OutputFolder
from doge_export.quantization.add_graphs import add_graphs
from doge_export.quantization.quality import Quality
from doge_export.quantization.request import QuantizationRequest
from doge_export.quantization.texts import check_files
from doge_export.runtime.hub_folder import local_folder
from doge_export.runtime.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class QuantizeResult:
    """Result of `quantize`.

    Attributes:
        folder: the folder that was changed.
        manifest: content of its doge_export.json.
        qualities: losses of each new graph, by file name.
    """

    folder: Path
    manifest: Manifest
    qualities: dict[str, Quality]


def quantize(
    folder: str | Path,
    precisions: Sequence[str],
    *,
    max_kl: float | None = None,
    calibration: str | Path | None = None,
    eval_text: str | Path | None = None,
    float_cache: bool = False,
    expand_weights: bool = False,
    force: bool = False,
) -> QuantizeResult:
    """Add graphs in fewer bits to an exported folder, from its fp32 graph, without the checkpoint or torch.

    Args:
        folder: a folder that `export` wrote; it is replaced at the end, or not at all. Of a hub id, the snapshot in the
            cache is meant.
        precisions: "int8", "int4", "fp16", "q4f16".
        max_kl, calibration, eval_text, float_cache, expand_weights: see `QuantizationRequest`.
        force: make graphs anew that the folder already has.

    Raises:
        DogeExportError: the arguments or the folder are wrong.
        RunFailed: a graph loses more than the limit; the folder is as it was.
    """
    need("export", "onnx", "onnxscript")
    folder = local_folder(folder)
    request = QuantizationRequest.checked(precisions, max_kl, calibration, eval_text, float_cache, expand_weights)
    manifest = verify(folder)
    _check(folder, manifest, request, force)
    check_files(request, Tokenizer.from_folder(folder))
    with OutputFolder(folder, force=True).draft() as draft:  # from here on no other run changes the folder
        if read_manifest(folder) != manifest:  # one did meanwhile
            manifest = verify(folder)
            _check(folder, manifest, request, force)
        _copy(folder, draft.folder)
        for precision in request.precisions:
            for file in (
                precision.file,
                f"{precision.file}_data",
            ):  # links: writing into them would change the original
                (draft.folder / file).unlink(missing_ok=True)
        manifest, qualities = add_graphs(draft.folder, manifest, request)
        draft.describe(manifest)
        manifest = draft.finish()
    return QuantizeResult(folder, manifest, qualities)


def _check(folder: Path, manifest: Manifest, request: QuantizationRequest, force: bool) -> None:
    """Refuse a folder that the request cannot be met for."""
    if MODEL not in manifest.graphs:
        raise DogeExportError(
            f"{folder} has no {MODEL} to quantise: it was made for {manifest.target}; export the checkpoint with "
            f"`doge-export onnx {manifest.source.model} OUT`"
        )
    request.check_target(manifest.target)
    there = [precision.name for precision in request.precisions if precision.file in manifest.graphs]
    if there and not force:
        raise DogeExportError(f"{folder} has {', '.join(there)} already; make it anew with --force, or leave it out")
    if (folder / ".git").exists():
        raise DogeExportError(f"{folder} is a git repository, which is never replaced; quantise a copy of it")


def _copy(folder: Path, staging: Path) -> None:
    """Copy a folder, which may hold `staging`, into it.

    Graphs, which are large and never changed, become hard links if the file system has them.
    """

    def copy(source: str, target: str) -> None:
        if Path(source).suffix == ".onnx" or source.endswith(".onnx_data"):
            try:
                os.link(os.path.realpath(source), target)
                return
            except OSError:
                pass
        shutil.copyfile(source, target)

    def of_runs(parent: str, names: list[str]) -> list[str]:
        return [name for name in names if leftovers.INSIDE.fullmatch(name)] if Path(parent) == folder else []

    # Links in a snapshot of the hub's cache, which `verify` accepts, become files; it accepts no others.
    shutil.copytree(folder, staging, dirs_exist_ok=True, symlinks=False, copy_function=copy, ignore=of_runs)
