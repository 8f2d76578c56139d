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
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.device import Device
from doge_export.runtime.engine.plugin_file import PluginFile
from doge_export.runtime.engine.sidecar import ENGINE, ONNX, Sidecar
from doge_export.trt.builder import BuilderSettings, Built, build_engine
from doge_export.trt.describe import manifest_of, sidecar_of
from doge_export.trt.engine_card import write_card
from doge_export.trt.plan_engine import plan_engine

if TYPE_CHECKING:
    from doge_export.trt.engine_plan import EnginePlan
    from doge_export.validation import Verdict


@dataclasses.dataclass(frozen=True)
class EngineResult:
    """An engine's folder that was written; `verdict` is None if validation was not asked for."""

    folder: Path
    manifest: Manifest
    sidecar: Sidecar
    verdict: Verdict | None


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
        model: see `plan_engine`.
        output: the folder to write; it appears complete at the end, or not at all.
        settings: for TensorRT's builder.
        plugin: the plugin's library. None: $DOGE_TRT_PLUGIN, else the one that `doge-export plugin build` keeps.
        keep_onnx: leave the graph that the engine is built from in the folder, for trtexec and polygraphy.
        force: replace a non-empty output.
        validate: compare with PyTorch before the folder appears; the manifest records if this is False.
        options: those of `plan_engine`; None is the default.

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
    output_folder = OutputFolder.checked(output, force=force, reads=[model, plugin])
    found = None if options.get("attention") == "native" else plugin_file.find_plugin(plugin)
    planned = plan_engine(model, tensorrt_version=installation.version(trt)[:2], **options)
    refuse_findings(planned)
    found = found if planned.plugin_nodes else None
    verdict = None
    with output_folder.draft() as draft:
        sidecar = write_engine(trt, runtime, planned, draft.folder, found, settings)
        if not keep_onnx:
            for file in draft.folder.glob(f"{ONNX}*"):
                file.unlink()
        draft.take_over(planned.provenance.companions, planned.provenance.made)
        draft.describe(manifest_of(planned, "--no-validate", tf32=settings.tf32))
        if validate:
            gc.collect()
            verdict = _validate(draft)
        draft.record_run(started)
        manifest = draft.finish(partial(write_card, sidecar=sidecar))
    return EngineResult(draft.output, manifest, sidecar, verdict)


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
        sidecar = sidecar_of(
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

    with load(draft.folder, allow_host_code=True) as session:  # built here and now
        return draft.validate("--no-validate keeps the folder", session=session)
