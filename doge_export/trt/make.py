"""`doge-export trt`: make a validated folder with an engine from a checkpoint, or from the checkpoint of an export."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.pipeline.folder import Draft, OutputFolder
from doge_export.plugin.architectures import OLDEST
from doge_export.plugin.build import TENSORRT_PLUGIN, build, check_tools
from doge_export.plugin.gpus import DEFAULT_GPU, capability_of
from doge_export.plugin.tensorrt_versions import NEWEST, MajorMinor, dotted
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.device import Device
from doge_export.runtime.engine.kinds import RTX, TENSORRT, Kind, kind_of, title_of
from doge_export.runtime.engine.plugin_file import AMPERE_AND_LATER, AMPERE_ARCHITECTURES, PluginFile
from doge_export.runtime.engine.sidecar import ENGINE, ONNX, Sidecar
from doge_export.trt.builder import BuilderSettings, Built, build_engine, targets
from doge_export.trt.describe import manifest_of, sidecar_of
from doge_export.trt.engine_card import write_card
from doge_export.trt.layer_list import count_launches
from doge_export.trt.plan_engine import plan_engine

if TYPE_CHECKING:
    from doge_export.trt.engine_plan import EnginePlan
    from doge_export.validation import Verdict


@dataclasses.dataclass(frozen=True)
class EngineResult:
    """An engine's folder that was written; `verdict` is None if it was not validated."""

    folder: Path
    manifest: Manifest
    sidecar: Sidecar
    verdict: Verdict | None


def make_engine(
    model: str | Path,
    output: str | Path,
    *,
    builder: str | None = None,
    settings: BuilderSettings | None = None,
    plugin: str | Path | None = None,
    keep_onnx: bool = False,
    force: bool = False,
    validate: bool = True,
    must_run: bool = False,
    **options: Any,
) -> EngineResult:
    """Build an engine, and compare it with PyTorch where there is a GPU to run it.

    Args:
        model: see `plan_engine`.
        output: the folder to write; it appears complete at the end, or not at all.
        builder: "tensorrt", on and for this machine's GPU, or "rtx", which needs no GPU; None: see
            `installation.choose`.
        settings: for the builder. TensorRT for RTX builds for the RTX 4090 if it names no compute capabilities.
        plugin: the plugin's library. None: $DOGE_TRT_PLUGIN, else one that `doge-export plugin build` keeps, else one
            that is built now.
        keep_onnx: leave the graph that the engine is built from in the folder, for trtexec and polygraphy.
        force: replace a non-empty output.
        validate: compare with PyTorch before the folder appears; the manifest records if this is False, or if no GPU
            is here that runs the engine.
        must_run: refuse, before the work, an engine that cannot be run here.
        options: those of `plan_engine`; None is the default.

    Returns:
        the folder that was written.

    Raises:
        DogeExportError: an option is wrong, or this machine lacks something.
        RunFailed: TensorRT refuses the build, or the engine does not agree with PyTorch.
    """
    started = time.monotonic()
    trt = installation.choose(builder)
    kind = kind_of(trt)
    settings = complete(settings or BuilderSettings(), trt)
    settings.check()
    settings.check_for(trt)
    gpu = gpu_here() if kind == RTX else _gpu_of(installation.require_cuda(kind))
    no_run = _no_run(kind, settings, gpu)
    if must_run and no_run:
        reason = no_run.removeprefix("not run: ")
        raise DogeExportError(f"--save-results runs the engine, and there is {reason} here; leave it out")
    output_folder = OutputFolder.checked(output, force=force, reads=[model, plugin])
    wanted = targets(settings, gpu.compute_capability if gpu else None)
    found = None if options.get("attention") == "native" else _kept_plugin(wanted, plugin)
    version = installation.version(trt)[:2] if kind == TENSORRT else NEWEST
    planned = plan_engine(model, builder=kind.name, tensorrt_version=version, **options)
    refuse_findings(planned)
    found = (found or _built_plugin(wanted)) if planned.plugin_nodes else None
    verdict = None
    with output_folder.draft() as draft:
        sidecar = write_engine(trt, gpu, planned, draft.folder, found, settings)
        if not keep_onnx:
            for file in draft.folder.glob(f"{ONNX}*"):
                file.unlink()
        draft.take_over(planned.provenance.companions, planned.provenance.made)
        skipped = no_run if validate and no_run else "--no-validate"
        draft.describe(manifest_of(planned, skipped, tf32=settings.tf32))
        if validate and no_run:
            log(f"comparison with PyTorch {no_run}; `doge-export validate` makes it where there is one")
        elif validate:
            gc.collect()
            verdict = _validate(draft)
        draft.record_run(started)
        manifest = draft.finish(partial(write_card, sidecar=sidecar))
    return EngineResult(draft.output, manifest, sidecar, verdict)


def _kept_plugin(capabilities: tuple[MajorMinor, ...], named: str | Path | None) -> PluginFile | None:
    """Return a plugin with kernels for GPUs: the one that is named, else one that is kept; None if one can be built.

    Raises:
        DogeExportError: the one that is named lacks kernels, or none can be built here.
    """
    older = [capability for capability in capabilities if capability < OLDEST]
    if older:
        raise DogeExportError(
            f"the plugin's kernels run on compute capability {dotted(OLDEST)} or later, and the engine is for "
            f"{dotted(older[0])}; take --attention native"
        )
    try:
        found = plugin_file.find_plugin(named, capabilities)
        plugin_file.check_architectures(found, capabilities)
        return found
    except DogeExportError:
        if plugin_file.is_named(named):
            raise
    check_tools(_architectures(capabilities))
    return None


def _built_plugin(capabilities: tuple[MajorMinor, ...]) -> PluginFile:
    """Return a plugin that is built now, with kernels for GPUs.

    Raises:
        DogeExportError: none can be built here.
    """
    built = build(architectures=_architectures(capabilities))
    if TENSORRT_PLUGIN not in built.libraries:
        lacking = "; ".join(built.missing)
        raise DogeExportError(f"no plugin is built here, and none can be: {lacking}; or take --attention native")
    return plugin_file.read_plugin(built.libraries[TENSORRT_PLUGIN])


def _architectures(capabilities: tuple[MajorMinor, ...]) -> Sequence[str]:
    """Return what a plugin for GPUs is compiled for, as CMake names it."""
    if capabilities == AMPERE_AND_LATER:
        return AMPERE_ARCHITECTURES
    return [f"{major}{minor}" for major, minor in capabilities]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Name and compute capability of a GPU: "NVIDIA GeForce RTX 4090" and (8, 9)."""

    name: str
    compute_capability: MajorMinor


def gpu_here() -> Gpu | None:
    """Return this machine's GPU; None if none can be used."""
    runtime, problem = installation.cuda_and_problem()
    return None if runtime is None or problem else _gpu_of(runtime)


def _gpu_of(runtime: ModuleType) -> Gpu:
    device = Device(runtime)
    try:
        return Gpu(device.name, device.compute_capability)
    finally:
        device.close()


def complete(settings: BuilderSettings, trt: ModuleType) -> BuilderSettings:
    """Return the settings with the RTX 4090 as what TensorRT for RTX builds for, if they name no GPU."""
    if kind_of(trt) != RTX or settings.compute_capabilities:
        return settings
    return dataclasses.replace(settings, compute_capabilities=(capability_of(DEFAULT_GPU),))


def _no_run(kind: Kind, settings: BuilderSettings, gpu: Gpu | None) -> str | None:
    """Return why an engine cannot be run here, for the manifest; None if it can."""
    if gpu is None:
        return "not run: no GPU"
    if kind == RTX and gpu.compute_capability not in settings.compute_capabilities:
        wanted = " or ".join(map(dotted, settings.compute_capabilities))
        return f"not run: no GPU of compute capability {wanted} ({gpu.name} has {dotted(gpu.compute_capability)})"
    return None


def refuse_findings(planned: EnginePlan) -> None:
    """Check that the plan has no findings.

    Raises:
        DogeExportError: it has; the message is the first.
    """
    if planned.findings:
        more = f" (and {len(planned.findings) - 1} more, see --dry-run)" if len(planned.findings) > 1 else ""
        raise DogeExportError(f"no engine can be built of this: {planned.findings[0]}{more}")


def write_engine(
    trt: ModuleType,
    gpu: Gpu | None,
    planned: EnginePlan,
    folder: Path,
    plugin: PluginFile | None,
    settings: BuilderSettings,
) -> Sidecar:
    """Write the graph, its engine and the sidecar into `folder`; return the sidecar."""
    from doge_export.package.fingerprint import fingerprint
    from doge_export.package.onnx_file import write_onnx

    kind = kind_of(trt)
    onnx = folder / ONNX
    onnx.parent.mkdir()
    write_onnx(planned.graph, onnx)
    log(f"building the engine with {title_of(trt)}" + ("; this takes minutes" if kind == TENSORRT else ""))
    built: Built = build_engine(trt, planned, onnx, plugin, settings)
    (folder / ENGINE).write_bytes(built.engine)
    log(f"{len(built.engine) / 1e6:.1f} MB, {built.layers} layers, {built.seconds:.0f} s")
    capabilities = settings.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    done = {"seconds": round(built.seconds, 1), "layers": built.layers, "warnings": list(built.warnings)}
    done["launches"] = {profile: count_launches(layers) for profile, layers in built.listed.items()}
    sidecar = sidecar_of(
        planned,
        builder=kind.name,
        tensorrt=trt.__version__,
        compute_capabilities=capabilities,
        gpu=None if gpu is None or kind == RTX else gpu.name,
        hardware="same" if kind == RTX else settings.hardware,
        version_compatible=settings.version_compatible,
        plugin=None if plugin is None else plugin.to_dict(),
        plugin_embedded=plugin is not None and settings.embed_plugin,
        plugin_layers=built.plugin_layers,
        settings=settings.to_dict() | done,
        engine=dataclasses.asdict(fingerprint(folder / ENGINE)),
        onnx=dataclasses.asdict(fingerprint(onnx)),
    )
    sidecar.write(folder)
    return sidecar


def _validate(draft: Draft) -> Verdict:
    from doge_export.runtime.loading import load

    with load(draft.folder, allow_host_code=True) as session:  # built here and now
        return draft.validate("--no-validate keeps the folder", session=session)
