"""Build the bytes of an engine from its plan, by TensorRT's builder.

2026-11-28: Polygraphy's loaders (0.53.6, backend/trt) were read as a replacement of this module, and do not fit:

- NetworkFromOnnxPath replaces all parser flags by those given, cannot ask for strong typing in a TensorRT without the
  flag, and writes what the parser refused to its log only, which goes to stdout; we put it into the error's one line.
- Its logger, one for the process, turns a Ctrl-C during a message into SIGTERM; we end the build and clean up.
- CreateConfig ignores whether a profile or a timing cache was accepted, and cannot embed plugins.
- EngineBytesFromNetwork merges a timing cache of another GPU into ours, and writes the file in place.
- All of them import TensorRT by a switch of the process (POLYGRAPHY_USE_TENSORRT_RTX, module tensorrt_rtx), which is
  read when Polygraphy is imported; here the module is an argument, so that tests can pass a recorder and one process
  can use both.

One thing it does better is taken over: the file of a timing cache is locked (by Polygraphy's LockFile) and read again
before it is written, so that two builds at a time keep the measurements of both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from doge_export import interruption
from doge_export.console import detail, log, progress
from doge_export.errors import DogeExportError, RunFailed
from doge_export.installing import install_command
from doge_export.package.atomic_file import written_file
from doge_export.plugin.tensorrt_versions import MajorMinor, dotted
from doge_export.runtime.engine import plugin_file
from doge_export.runtime.engine.installation import last_error, make_logger
from doge_export.runtime.engine.kinds import RTX, kind_of, title_of
from doge_export.runtime.engine.plugin_file import AMPERE_AND_LATER, PluginFile
from doge_export.trt.layer_list import Layer, read_layers

if TYPE_CHECKING:
    from doge_export.trt.engine_plan import EnginePlan

_ONLY = "leave it out, or take --builder tensorrt"
_HARDWARE = {"same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}


@dataclasses.dataclass(frozen=True)
class BuilderSettings:
    """Settings of TensorRT's builder that are no part of the plan.

    Attributes:
        opt_level: 0 (builds fast) to 5 (runs fast).
        workspace_mib: MiB of workspace that layers may share; None: as much as the GPU has.
        timing_cache: a file of TensorRT's measurements, read and extended, so that the next build is short.
        hardware: the other GPUs that may run the engine: "none", "same" (compute capability), "ampere+".
        compute_capabilities: that TensorRT for RTX builds for; empty for TensorRT, which builds for the GPU here.
        version_compatible: let later TensorRT of the same major version run the engine.
        embed_plugin: put the plugin's library into the engine.
        tf32: let float32 products take TF32 factors of 19 bits. In a 16-bit graph the only such products are the scores
            of keys and experts, which are float32 because they need the precision.
    """

    opt_level: int = 3
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    hardware: str = "none"
    compute_capabilities: tuple[MajorMinor, ...] = ()
    version_compatible: bool = False
    embed_plugin: bool = False
    tf32: bool = False

    def check(self) -> None:
        """Check that the settings fit together and can be followed here.

        Raises:
            DogeExportError: they do not, or cannot.
        """
        if self.embed_plugin and not self.version_compatible:
            raise DogeExportError(
                "--embed-plugin puts the plugin into a version compatible engine; add the option --version-compatible"
            )
        if self.timing_cache is not None and self.timing_cache.is_dir():
            raise DogeExportError(f"timing cache {self.timing_cache} is a folder; name a file")
        if self.timing_cache is not None and importlib.util.find_spec("polygraphy") is None:
            raise DogeExportError(f"--timing-cache needs polygraphy: {install_command('trt')}")

    def check_for(self, trt: ModuleType) -> None:
        """Check that a TensorRT has these settings.

        Raises:
            DogeExportError: it lacks one.
        """
        kind = kind_of(trt)
        if kind != RTX:
            if self.compute_capabilities:
                raise DogeExportError(
                    f"{kind.title} builds for the GPU of this machine; name other GPUs with --builder rtx only"
                )
            return
        capabilities = "an engine of TensorRT for RTX runs on the compute capabilities that it is built for"
        reasons = {
            "--hw-compat": (self.hardware != "none", f"{capabilities}: name them with --compute-capability"),
            "--version-compatible": (self.version_compatible, f"its engines need the version that built them: {_ONLY}"),
            "--timing-cache": (self.timing_cache is not None, f"it measures nothing while it builds: {_ONLY}"),
        }
        for option, (given, reason) in reasons.items():
            if given:
                raise DogeExportError(f"{option} is not for {kind.title}: {reason}")
        for capability in self.compute_capabilities:
            _compute_capability(trt, capability)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that the sidecar lists under "settings"."""
        return {"opt_level": self.opt_level, "workspace_mib": self.workspace_mib, "tf32": self.tf32}


@dataclasses.dataclass(frozen=True)
class Built:
    """A built engine.

    Attributes:
        engine: serialized.
        layers: number of layers that the parser made.
        plugin_layers: number of these that call the plugin.
        seconds: that the build took.
        warnings: that the parser and the builder gave, one line each.
        listed: layers of each profile as the builder lists them; empty if it does not.
    """

    engine: bytes
    layers: int
    plugin_layers: int
    seconds: float
    warnings: tuple[str, ...] = ()
    listed: Mapping[str, list[Layer]] = dataclasses.field(default_factory=dict)


def build_engine(
    trt: ModuleType, plan: EnginePlan, onnx: Path, plugin: PluginFile | None, settings: BuilderSettings
) -> Built:
    """Build the engine of a plan.

    Args:
        trt: the module of either TensorRT.
        plan: of the engine.
        onnx: file of the plan's graph.
        plugin: that the plan's nodes of domain doge call; None if it has none.
        settings: of the builder.

    Returns:
        the engine.

    Raises:
        DogeExportError: this TensorRT lacks a setting.
        RunFailed: TensorRT refuses the graph or the build.
    """
    started = time.monotonic()
    settings.check()
    settings.check_for(trt)
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = parse(trt, builder, logger, onnx, plugin)
    plugin_layers = _check_plugin_layers(trt, network, plan.plugin_nodes)
    config = _configure(trt, builder, plan, plugin, settings)
    with _timing_cache(config, settings.timing_cache), progress("building the engine") as advance:
        monitor = config.progress_monitor = make_monitor(trt, advance)
        with interruption.deferred():
            engine = builder.build_serialized_network(network, config)
        if monitor.ended_by is not None:
            raise monitor.ended_by
        if engine is None:
            raise RunFailed(f"{title_of(trt)} did not build the engine: {last_error(logger)}")
    return Built(
        bytes(engine),
        network.num_layers,
        plugin_layers,
        time.monotonic() - started,
        tuple(logger.warnings),
        read_layers(logger.layers, [*plan.profiles]),
    )


def parse(trt: ModuleType, builder: Any, logger: Any, onnx: Path, plugin: PluginFile | None) -> Any:
    """Parse the file into a strongly typed network: every value has in the engine the type that the graph gives it.

    Args:
        trt: the module of either TensorRT.
        builder: its Builder.
        logger: of `make_logger`.
        onnx: file of a graph.
        plugin: that nodes of domain doge call; None if there are none.

    Returns:
        the INetworkDefinition.

    Raises:
        RunFailed: the parser refuses the graph.
    """
    if plugin is not None:
        plugin_file.register(trt, plugin)
    flags = 0
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if typed is not None:  # implied from TensorRT 11 on, where the flag may be removed
        flags |= 1 << int(typed)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    override = getattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE", None)
    if override is not None:  # since 10.15; before that a registered plugin always comes first
        parser.set_flag(override)
    if not parser.parse_from_file(str(onnx)):
        errors = [" ".join(str(parser.get_error(index).desc()).split()) for index in range(parser.num_errors)]
        raise RunFailed(
            f"{title_of(trt)} does not take the graph: {errors[0] if errors else last_error(logger)}"
            + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
        )
    return network


def count_plugin_layers(trt: ModuleType, network: Any) -> int:
    """Return how many layers of a network call a plugin."""
    types = (network.get_layer(index).type for index in range(network.num_layers))
    return sum(kind == trt.LayerType.PLUGIN_V3 for kind in types)


def _check_plugin_layers(trt: ModuleType, network: Any, expected: int) -> int:
    """Return the number of plugin layers, having checked that each of our nodes became one.

    Raises:
        RunFailed: the parser imported a node as something else, which would compute something else, or slowly.
    """
    found = count_plugin_layers(trt, network)
    if found != expected:
        raise RunFailed(
            f"{title_of(trt)} made {found} plugin layers of {expected} nodes of domain doge; "
            "report this with the output of `doge-export trt --dry-run --json`"
        )
    return found


def _configure(
    trt: ModuleType, builder: Any, plan: EnginePlan, plugin: PluginFile | None, settings: BuilderSettings
) -> Any:
    config = builder.create_builder_config()
    for name, shapes in plan.profiles.items():
        profile = builder.create_optimization_profile()
        for tensor, (low, best, high) in shapes.items():
            profile.set_shape(tensor, low, best, high)
        if config.add_optimization_profile(profile) < 0:
            raise RunFailed(f"{title_of(trt)} does not take the optimisation profile {name}: {shapes}")
    if kind_of(trt) == RTX:
        _configure_rtx(trt, config, settings.compute_capabilities)
    config.builder_optimization_level = settings.opt_level
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.hardware in _HARDWARE:
        level = getattr(trt.HardwareCompatibilityLevel, _HARDWARE[settings.hardware], None)
        if level is None:
            raise DogeExportError(
                f"{title_of(trt)} has no --hw-compat {settings.hardware}; use a newer one, or --hw-compat none"
            )
        config.hardware_compatibility_level = level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.embed_plugin and plugin is not None:
        config.plugins_to_serialize = [str(plugin.path)]
    return config


def _configure_rtx(rtx: ModuleType, config: Any, capabilities: tuple[MajorMinor, ...]) -> None:
    """Name the GPUs, let a CUDA graph record runs, and have the layers listed."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(_compute_capability(rtx, capability), index):
            raise RunFailed(f"{title_of(rtx)} does not take compute capability {dotted(capability)}")
    # Without it, TensorRT may allocate memory in a run, which a CUDA graph cannot record.
    config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED


def _compute_capability(rtx: ModuleType, capability: MajorMinor) -> Any:
    """Return what TensorRT for RTX calls a compute capability: SM120 is (12, 0).

    Raises:
        DogeExportError: it does not build for it.
    """
    members = rtx.ComputeCapability.__members__
    known = members.get(f"SM{capability[0]}{capability[1]}")
    if known is None:
        numbers = (name.removeprefix("SM") for name in members if name.startswith("SM"))
        names = sorted((int(number[:-1]), int(number[-1])) for number in numbers)
        raise DogeExportError(
            f"{title_of(rtx)} does not build for compute capability {dotted(capability)}; it builds for "
            f"{', '.join(map(dotted, names))}"
        )
    return known


def targets(settings: BuilderSettings, here: MajorMinor | None) -> tuple[MajorMinor, ...]:
    """Return the compute capabilities that an engine is for, as far as its plugin must have kernels for them.

    Args:
        settings: of the build.
        here: compute capability of this machine's GPU; needed for TensorRT only.
    """
    if settings.compute_capabilities:
        return settings.compute_capabilities
    if settings.hardware == "ampere+":
        return AMPERE_AND_LATER
    assert here is not None
    return (here,)


@contextlib.contextmanager
def _timing_cache(config: Any, file: Path | None) -> Iterator[None]:
    """Let the build in the body use the measurements of a file; if it succeeds, add the new ones to the file."""
    if file is None:
        yield
        return
    from polygraphy.util import LockFile

    with LockFile(str(file)):
        before = _content(file)
    cache = config.create_timing_cache(before)
    if cache is None or not config.set_timing_cache(cache, False):
        log(f"timing cache {file} is of another GPU or TensorRT; measured anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    with LockFile(str(file)):
        measured, now = config.get_timing_cache(), _content(file)
        # Another build wrote meanwhile. A cache of another GPU is not combined, and is replaced.
        if now != before and (others := config.create_timing_cache(now)) is not None:
            measured.combine(others, False)
        with written_file("--timing-cache", file) as stream:
            stream.write(bytes(measured.serialize()))
    detail(f"timing cache: {file.stat().st_size} bytes")


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def make_monitor(trt: ModuleType, advance: Callable[..., None]) -> Any:
    """Return a tensorrt.IProgressMonitor that calls `advance` for every step and ends the build on a signal.

    TensorRT calls it from C++, through which no exception may pass: one that ends the run becomes the answer False, and
    `ended_by`. Commands defer theirs, since in a callback that has no answer the bindings would drop it.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.ended_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                detail(f"{phase_name}: {num_steps} steps")

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                advance()
            except (KeyboardInterrupt, SystemExit) as error:
                self.ended_by = error
            return self.ended_by is None and interruption.pending() is None

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
