"""`doge-export trt`: make a validated folder with an engine from a checkpoint, or from the checkpoint of an export."""

from __future__ import annotations

import dataclasses
import gc
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.pipeline.folder import Draft, OutputFolder
from doge_export.plugin.tensorrt_versions import dotted
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.device import Device
from doge_export.runtime.engine.plugin_file import PluginFile
from doge_export.runtime.engine.sidecar import ENGINE, ONNX, CachePair, EngineTensor, Sidecar
from doge_export.trt.builder import BuilderSettings, Built, build_engine
from doge_export.trt.engine_card import write_card
from doge_export.version import __version__

if TYPE_CHECKING:
    from doge_export.trt.engine_plan import EnginePlan
    from doge_export.validation import Verdict

_TYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT32": "int32"}
"""Names in the sidecar for the types of an engine's inputs and outputs."""


@dataclasses.dataclass(frozen=True)
class EngineResult:
    """An engine's folder that was written; `verdict` is None if validation was not asked for."""

    folder: Path
    manifest: Manifest
    sidecar: Sidecar
    verdict: Verdict | None


def plan(model: str | Path, **options: Any) -> EnginePlan:
    """Plan an engine of `model`; needs neither TensorRT nor a GPU.

    Args:
        model: a checkpoint (folder, hub id, bundled name), or an exported folder, whose checkpoint is then taken.
        options: those of `plan_engine`; None is the default.

    Returns:
        the plan.
    """
    from doge_export.trt.plan_engine import plan_engine

    given = {name: value for name, value in options.items() if value is not None}
    model, recorded = _checkpoint_of(model)
    planned: EnginePlan = plan_engine(model, **{**recorded, **given})
    return planned


def make_engine(
    model: str | Path,
    output: str | Path,
    *,
    settings: BuilderSettings | None = None,
    plugin: str | Path | None = None,
    keep_onnx: bool = False,
    force: bool = False,
    validate: bool = True,
    **options: Any,
) -> EngineResult:
    """Build an engine on and for this machine's GPU, and compare it with PyTorch.

    Args:
        model: as in `plan`.
        output: the folder to write; it appears complete at the end, or not at all.
        settings: for TensorRT's builder.
        plugin: the plugin's library. None: $DOGE_TRT_PLUGIN, else the one that `doge-export plugin build` keeps.
        keep_onnx: leave the graph that the engine is built from in the folder, for trtexec and polygraphy.
        force: replace a non-empty output.
        validate: compare with PyTorch before the folder appears; the manifest records if this is False.
        options: as in `plan`.

    Returns:
        the folder that was written.

    Raises:
        DogeExportError: an option is wrong, or this machine lacks something.
        RunFailed: TensorRT refuses the build, or the engine does not agree with PyTorch.
    """
    started = time.monotonic()
    settings = settings or BuilderSettings()
    settings.check()
    trt, runtime = installation.require()
    output_folder = OutputFolder.checked(output, force=force, reads=model)
    found = None if options.get("attention") == "native" else plugin_file.find_plugin(plugin)
    planned = plan(model, tensorrt_version=installation.version(trt)[:2], **options)
    refuse_findings(planned)
    found = found if planned.plugin_nodes else None
    verdict = None
    with output_folder.draft() as draft:
        sidecar = write_engine(trt, runtime, planned, draft.folder, found, settings)
        if not keep_onnx:
            for file in draft.folder.glob(f"{ONNX}*"):
                file.unlink()
        draft.take_over(planned.provenance.companions)
        draft.describe(manifest_of(planned, "--no-validate", tf32=settings.tf32))
        if validate:
            gc.collect()
            verdict = _validate(draft)
        draft.record_run(started)
        manifest = draft.finish(partial(write_card, sidecar=sidecar))
    return EngineResult(draft.output, manifest, sidecar, verdict)


def plan_facts(planned: EnginePlan) -> dict[str, Any]:
    """Return a plan in plain JSON values, for `--dry-run`."""
    memory = planned.memory

    def ports(bindings: Any) -> dict[str, str]:
        return {name: f"{port.dtype.name} [{', '.join(map(str, port.shape))}]" for name, port in bindings.items()}

    return {
        "model": planned.provenance.source.model,
        "precision": planned.precision,
        "attention": planned.attention,
        "tensorrt": dotted(planned.tensorrt_version),
        "max_batch": planned.max_batch,
        "max_length": planned.max_length,
        "max_logits": planned.max_logits,
        "plugin_nodes": planned.plugin_nodes,
        "memory": dataclasses.asdict(memory),
        "inputs": ports(planned.inputs),
        "outputs": ports(planned.outputs),
        "profiles": {
            name: {tensor: [list(shape) for shape in shapes] for tensor, shapes in profile.items()}
            for name, profile in planned.profiles.items()
        },
        "typing": planned.typing,
        "findings": [str(finding) for finding in planned.findings],
        "trtexec": planned.trtexec(ONNX, ENGINE),
    }


def refuse_findings(planned: EnginePlan) -> None:
    """Check that the plan has no findings.

    Raises:
        DogeExportError: it has; the message is the first.
    """
    if planned.findings:
        more = f" (and {len(planned.findings) - 1} more, see --dry-run)" if len(planned.findings) > 1 else ""
        raise DogeExportError(f"no engine can be built of this: {planned.findings[0]}{more}")


def manifest_of(planned: EnginePlan, skipped: str, *, tf32: bool = False) -> Manifest:
    """Return the manifest of an engine's folder before validation.

    Args:
        planned: the engine.
        skipped: why it is not validated.
        tf32: float32 products take TF32 factors; an fp32 engine is then judged by the tolerance of that type.
    """
    from doge_export.package.onnx_file import describe_graph
    from doge_export.package.provenance import versions

    provenance = planned.provenance
    precision = "tf32" if tf32 and planned.precision == "fp32" else planned.precision
    entry = dataclasses.replace(describe_graph(planned.graph, precision, "engine"), typing=planned.typing)
    return Manifest(
        doge_export=__version__,
        source=provenance.source,
        architecture=provenance.architecture,
        task="text-generation",
        assumptions=provenance.assumptions,
        target="tensorrt",
        max_length=planned.max_length,
        chunkable_length=provenance.chunkable_length,
        cdmoe_routing=provenance.cdmoe_routing,
        graphs={ENGINE: entry},
        versions=versions(),
        validation={"skipped": skipped},
    )


def write_engine(
    trt: ModuleType,
    runtime: ModuleType,
    planned: EnginePlan,
    folder: Path,
    plugin: PluginFile | None,
    settings: BuilderSettings,
) -> Sidecar:
    """Write the graph, its engine and the sidecar into `folder`; return the sidecar."""
    from doge_export.package.fingerprint import fingerprint
    from doge_export.package.onnx_file import write_onnx

    onnx = folder / ONNX
    onnx.parent.mkdir()
    write_onnx(planned.graph, onnx)
    log(f"building the engine with TensorRT {trt.__version__}; this takes minutes")
    built: Built = build_engine(trt, planned, onnx, plugin, settings)
    (folder / ENGINE).write_bytes(built.engine)
    log(f"{len(built.engine) / 1e6:.1f} MB, {built.layers} layers, {built.seconds:.0f} s")
    device = Device(runtime)
    try:
        sidecar = describe(
            planned,
            tensorrt=trt.__version__,
            compute_capability=device.compute_capability,
            gpu=device.name,
            hardware=settings.hardware,
            version_compatible=settings.version_compatible,
            plugin=None if plugin is None else plugin.to_dict(),
            plugin_embedded=plugin is not None and settings.embed_plugin,
            plugin_layers=built.plugin_layers,
            settings=settings.to_dict() | {"seconds": round(built.seconds, 1), "layers": built.layers},
            onnx=dataclasses.asdict(fingerprint(onnx)),
        )
    finally:
        device.close()
    sidecar.write(folder)
    return sidecar


def _validate(draft: Draft) -> Verdict:
    from doge_export.runtime.loading import load

    with load(draft.folder) as session:
        return draft.validate("--no-validate keeps the folder", session=session)


def _checkpoint_of(model: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """Return the checkpoint of a model, and the options it was exported with if the model is an exported folder."""
    from doge_export.package import is_exported, read_manifest

    if not is_exported(model):
        return model, {}
    manifest = read_manifest(model)
    if manifest.target == "canonical":  # its graph is what engines start from
        return model, {}
    if manifest.task != "text-generation":
        raise DogeExportError(f"{model} was exported for {manifest.task}; engines are made for text-generation")
    recorded: dict[str, Any] = {"max_length": manifest.max_length, "revision": manifest.source.revision}
    if manifest.cdmoe_routing:
        recorded["cdmoe_routing"] = manifest.cdmoe_routing
    assumed = {name: value for name, value in manifest.assumptions.items() if name != "task"}
    return manifest.source.model, recorded | assumed


def describe(plan: EnginePlan, **built: Any) -> Sidecar:
    """Return the sidecar of an engine of this plan; `built` are the fields that are known only after the build."""

    def tensor(binding: Any) -> EngineTensor:
        return EngineTensor(_TYPES[binding.dtype.name], tuple(binding.shape))

    return Sidecar(
        precision=plan.precision,
        attention=plan.attention,
        max_batch=plan.max_batch,
        max_length=plan.max_length,
        max_logits=plan.max_logits,
        inputs={name: tensor(binding) for name, binding in plan.inputs.items()},
        outputs={name: tensor(binding) for name, binding in plan.outputs.items()},
        profiles={name: dict(shapes) for name, shapes in plan.profiles.items()},
        caches=tuple(CachePair(c.past, c.present, _TYPES[c.dtype.name], tuple(c.shape)) for c in plan.caches),
        **built,
    )
