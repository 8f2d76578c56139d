"""The whole way from a checkpoint to a validated folder: checkpoint -> model -> graph -> targets -> package -> verdict."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import platform
import resource
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import doge_export
from doge_export.console import log
from doge_export.errors import DogeExportError, RunFailed

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting
    from doge_export.targets import Target
    from doge_export.validation import Verdict

GRAPH = "onnx/model.onnx"
SINGLE_FILE_LIMIT = 2**31 - 2**20
"""Bytes of weights that one protobuf holds; more go to `model.onnx_data` beside it."""


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What `export` wrote. `verdict` is None where validation was not asked for."""

    folder: Path
    manifest: dict[str, Any]
    verdict: Verdict | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an export will contain, decided before anything is written."""

    model: str
    revision: str | None
    output: str
    target: str
    max_length: int
    cdmoe_routing: str | None
    key_selection: bool
    rope_scaling: bool
    parameters: int
    bytes: int
    architecture: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


@overload
def export(model: str | Path, output: str | Path, *, dry_run: Literal[True], **options: Any) -> Plan: ...
@overload
def export(
    model: str | Path, output: str | Path, *, dry_run: Literal[False] = False, **options: Any
) -> ExportResult: ...
def export(
    model: str | Path,
    output: str | Path,
    *,
    target: str = "onnxruntime",
    max_length: int | None = None,
    cdmoe_routing: CdmoeRouting = "reference",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    force: bool = False,
    validate: bool = True,
    report: str | Path | None = None,
    trust_remote_code: bool = False,
    dry_run: bool = False,
) -> ExportResult | Plan:
    """Export a Doge checkpoint to a folder, and prove the folder against transformers.

    Args:
        model: a local folder or a hub id.
        output: the folder to write; it appears whole at the end, or not at all.
        target: "onnxruntime" for our own runtime, "portable" for anything that reads ONNX.
        max_length: tokens a sequence may have, prompt and answer together; max_position_embeddings by default.
        cdmoe_routing: "reference" mixes tokens as transformers does, "per-token" does not; of no meaning without CDMoE.
        revision, token, cache_dir, offline: for a hub id.
        force: replace a non-empty output.
        validate: compare with transformers before the folder appears; the manifest records when this is False.
        report: also write the comparison as an HTML file.
        trust_remote_code: always refused.
        dry_run: write nothing and give the plan.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong.
        RunFailed: the export does not agree with transformers; nothing is left at `output`.
    """
    from doge_export.checkpoint import open_checkpoint
    from doge_export.package import staged_folder, write_card, write_manifest
    from doge_export.package.atomic import refuse_output
    from doge_export.targets import TARGETS

    started = time.monotonic()
    if target not in TARGETS:
        raise DogeExportError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
    if cdmoe_routing not in ("reference", "per-token"):
        raise DogeExportError(f"unknown CDMoE routing {cdmoe_routing!r}; choose reference or per-token")
    output = Path(output)
    protected = [Path(model)] if Path(model).exists() else []
    refuse_output(output, force=force, protected=protected)  # before any download
    log(f"reading {model}")
    checkpoint = open_checkpoint(
        str(model),
        revision=revision,
        token=token,
        cache_dir=None if cache_dir is None else str(cache_dir),
        offline=offline,
        trust_remote_code=trust_remote_code,
    )
    architecture = checkpoint.architecture
    max_length = _checked_length(max_length, architecture)
    plan = _plan(checkpoint, output, TARGETS[target], max_length, cdmoe_routing)
    if dry_run:
        return plan

    with staged_folder(output, force=force, protected=protected) as folder:
        graphs = _write_graph(checkpoint, folder, TARGETS[target], max_length, cdmoe_routing)
        _copy_companions(checkpoint, folder)
        manifest = {
            "doge_export": doge_export.__version__,
            "source": _source(checkpoint),
            "architecture": architecture.to_dict(),
            "target": target,
            "max_length": max_length,
            "cdmoe_routing": plan.cdmoe_routing,
            "graphs": graphs,
            "versions": _versions(),
            "validation": {"skipped": "--no-validate"},
        }
        verdict = None
        write_manifest(folder, manifest)
        if validate:
            log("validating against transformers")
            verdict = _validate(folder, checkpoint, report)
            manifest["validation"] = verdict.to_dict()
        manifest["seconds"] = round(time.monotonic() - started, 1)
        manifest["peak_memory_bytes"] = peak_memory()
        write_card(folder, manifest)
        manifest = write_manifest(folder, manifest)
    return ExportResult(output, manifest, verdict)


def peak_memory() -> int:
    """The most resident memory this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _checked_length(max_length: int | None, architecture: Architecture) -> int:
    if max_length is None:
        return architecture.max_position_embeddings
    if not isinstance(max_length, int) or isinstance(max_length, bool) or not 1 <= max_length <= 2**24:
        raise DogeExportError(f"max length {max_length!r} is not a number of tokens from 1 to {2**24}")
    return max_length


def _plan(
    checkpoint: Checkpoint, output: Path, target: Target, max_length: int, cdmoe_routing: CdmoeRouting
) -> Plan:
    from doge_export.checkpoint.naming import expected_tensors
    from doge_export.model.rope import trained_length

    architecture = checkpoint.architecture
    trained = trained_length(architecture.rope, architecture.max_position_embeddings)
    parameters = 0
    for shape in expected_tensors(architecture).values():
        size = 1
        for extent in shape:
            size *= extent
        parameters += size
    return Plan(
        model=checkpoint.source.name,
        revision=checkpoint.source.revision,
        output=str(output),
        target=target.name,
        max_length=max_length,
        cdmoe_routing=cdmoe_routing if architecture.moe else None,
        key_selection=max_length > architecture.keep_window_size,
        rope_scaling=trained is not None and max_length > trained,
        parameters=parameters,
        bytes=4 * parameters,
        architecture=architecture.to_dict(),
    )


def _write_graph(
    checkpoint: Checkpoint, folder: Path, target: Target, max_length: int, cdmoe_routing: CdmoeRouting
) -> dict[str, Any]:
    """Trace, lower and write; every weight is freed on return."""
    import onnx_ir as ir

    from doge_export.graph import trace
    from doge_export.model import DogeForExport
    from doge_export.targets import lower

    architecture = checkpoint.architecture
    log("tracing")
    module = DogeForExport.from_tensors(architecture, checkpoint.tensors, cdmoe_routing, max_length)
    model = trace(module)
    log(f"lowering for {target.name}")
    lower(model, target, mixes_tokens=architecture.moe is not None and cdmoe_routing == "reference")
    file = folder / GRAPH
    file.parent.mkdir()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    log(f"writing {GRAPH}, {size / 1e6:.1f} MB")
    ir.save(model, file, external_data=None if size < SINGLE_FILE_LIMIT else f"{file.name}_data")
    described = _describe(model)
    del model, module
    gc.collect()
    return {GRAPH: described}


def _describe(model: ir.Model) -> dict[str, Any]:
    operators = Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in model.graph)
    return {
        "dtype": "float32",
        "opset": dict(model.opset_imports),
        "ir_version": model.ir_version,
        "nodes": operators.total(),
        "operators": dict(sorted(operators.items())),
    }


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """The files that tools look for beside a model, unchanged."""
    for file in [checkpoint.source.folder / "config.json", *checkpoint.tokenizer_files]:
        # copyfile, not copy2: a hub cache holds links to read-only blobs.
        shutil.copyfile(file, folder / file.name)


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    from doge_export.package.manifest import fingerprint

    source = checkpoint.source
    local = Path(source.name).exists()
    files = [source.folder / "config.json", *checkpoint.tensors.files]
    return {
        "model": str(Path(source.name).resolve()) if local else source.name,
        "revision": source.revision,
        "files": {file.relative_to(source.folder).as_posix(): fingerprint(file) for file in files},
    }


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def _validate(folder: Path, checkpoint: Checkpoint, report: str | Path | None) -> Verdict:
    from doge_export.validation import validate
    from doge_export.validation.report import write_report

    verdict = validate(folder, model=str(checkpoint.source.folder))
    if report is not None:
        write_report(verdict, Path(report))
    if not verdict.passed:
        raise RunFailed(
            f"{verdict.summary_line()}; nothing was written (see `--report FILE`, or keep the folder with --no-validate)"
        )
    return verdict
