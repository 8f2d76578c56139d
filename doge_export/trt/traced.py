"""The float32 graph that an engine is made from: traced from a checkpoint, or read from a canonical export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from doge_export.errors import DogeExportError
from doge_export.package.manifest import MODEL, Cache, Manifest
from doge_export.trt.engine_plan import Provenance


@dataclasses.dataclass(frozen=True)
class Traced:
    """A canonical language model for sequences of up to `max_length` tokens, and its source.

    Attributes:
        cache: that of the export that the model was taken from.
    """

    graph: ir.Model
    max_length: int
    provenance: Provenance
    cache: Cache = "unbounded"


def open_model(model: str | Path, **options: Any) -> Traced:
    """Open the model that an engine is made of.

    A folder exported with `--target canonical` holds the graph itself. Any other exported folder stands for the
    checkpoint that it was made from, opened as the export was.

    Args:
        model: a checkpoint (folder, hub id, bundled name) or an exported folder.
        options: those of `pipeline.plan`, without target; None is the default. A canonical export takes only
            max_length, up to the one it was made for.

    Returns:
        The float32 graph.

    Raises:
        DogeExportError: the model is no language model, has no operator in the plugin, or does not take an option.
    """
    from doge_export.package import is_exported, read_manifest

    given = {name: value for name, value in options.items() if value is not None}
    if not is_exported(model):
        return _checkpoint(model, given)
    manifest = read_manifest(model)
    if manifest.target == "canonical":
        return _canonical(Path(model), manifest, given)
    _require_language_model(str(model), manifest.task)
    recorded = {
        "max_length": manifest.max_length,
        "revision": manifest.source.revision,
        "cdmoe_routing": manifest.cdmoe_routing,
        **manifest.source.adapter_options,
        **manifest.assumptions,
    }
    traced = _checkpoint(
        manifest.source.model, {name: value for name, value in recorded.items() if value is not None} | given
    )
    return dataclasses.replace(traced, cache=manifest.cache)


def _checkpoint(model: str | Path, options: dict[str, Any]) -> Traced:
    from doge_export.package.provenance import source_of
    from doge_export.pipeline.plan import plan, trace_plan

    planned = plan(model, **(options | {"target": "canonical"}))
    checkpoint = planned.checkpoint
    _require_language_model(str(model), planned.architecture.task)
    provenance = Provenance(
        folder=checkpoint.source.folder,
        companions=tuple(checkpoint.companions),
        source=source_of(checkpoint),
        architecture=checkpoint.architecture.to_dict(),
        assumptions=checkpoint.assumed.to_dict(),
        cdmoe_routing=planned.cdmoe_routing,
        chunkable_length=planned.chunkable_length,
        made=checkpoint.tokenizer.made,
    )
    return Traced(trace_plan(planned), planned.max_length, provenance)


_FETCHING = ("token", "cache_dir", "offline")
"""Options of fetching a checkpoint, which an export ignores."""


def _canonical(folder: Path, manifest: Manifest, options: dict[str, Any]) -> Traced:
    from doge_export.checkpoint.files import companions
    from doge_export.package.onnx_file import read_onnx
    from doge_export.runtime.graph import open_graph
    from doge_export.runtime.interface import check_interface

    _require_language_model(str(folder), manifest.task)
    others = options.keys() - {"max_length", *_FETCHING}
    if others:
        raise DogeExportError(
            f"{folder} is an export, where {', '.join(sorted(others))} is decided: give the checkpoint"
        )
    longest = manifest.max_length
    max_length = options.get("max_length", longest)
    if not 1 <= max_length <= longest:
        raise DogeExportError(
            f"max length is {max_length}, and {folder} was exported for {longest}: give the checkpoint"
        )
    if MODEL not in manifest.graphs or not (folder / MODEL).is_file():
        raise DogeExportError(f"{folder} has no {MODEL} to make an engine of: export it again")
    provenance = Provenance(
        folder=folder,
        companions=tuple(companions(folder)),
        source=manifest.source,
        architecture=manifest.architecture,
        assumptions=manifest.assumptions,
        cdmoe_routing=manifest.cdmoe_routing,
        chunkable_length=min(manifest.chunkable_length, max_length),
    )
    # onnxruntime refuses external data outside the folder, and whatever is no graph.
    check_interface(open_graph(folder), manifest, manifest.graphs[MODEL].interface, folder / MODEL)
    return Traced(read_onnx(folder / MODEL), max_length, provenance)


def _require_language_model(name: str, task: str) -> None:
    if task != "text-generation":
        raise DogeExportError(f"{name} is for {task}; engines are made for text-generation")
