"""Open the engine of a folder, after checking it against this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

from doge_export.errors import DogeExportError, RunFailed
from doge_export.plugin.tensorrt_versions import dotted, release
from doge_export.regular_file import is_there
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.device import Device
from doge_export.runtime.engine.just_in_time import JustInTime, cache_file
from doge_export.runtime.engine.kinds import KINDS, RTX, kind_of, title_of
from doge_export.runtime.engine.sidecar import ENGINE, Sidecar, read_sidecar


@dataclasses.dataclass(frozen=True)
class OpenedEngine:
    """A deserialised engine; `runtime` and `logger` must live as long as `engine`.

    `just_in_time` compiles an engine of TensorRT for RTX; None for one of TensorRT, which needs no more.
    """

    sidecar: Sidecar
    trt: ModuleType
    engine: Any
    runtime: Any
    logger: Any
    device: Device
    just_in_time: JustInTime | None = None


def open_engine(folder: Path, allow_host_code: bool = False) -> OpenedEngine:
    """Open the engine in a folder that `doge-export trt` wrote.

    Args:
        folder: of the engine.
        allow_host_code: let the engine run code for the CPU that it contains: the lean runtime of a version compatible
            engine, a plugin inside it. Only the user may say so, and nothing in the folder.

    Raises:
        DogeExportError: the folder has no engine, or the engine does not run with this machine's TensorRT, GPU or
            plugin.
        RunFailed: TensorRT does not open it.
    """
    sidecar = read_sidecar(folder)
    file = folder / ENGINE
    if not is_there(file):
        raise DogeExportError(f"{folder} has no {ENGINE}; build it again with `doge-export trt`")
    check_size(sidecar, file)
    trt = tensorrt_of(sidecar)
    check_tensorrt(sidecar, trt)
    device = Device(installation.require_cuda(kind_of(trt)))
    check_gpu(sidecar, device)
    if sidecar.version_compatible and not allow_host_code:
        raise DogeExportError(
            f"{file} contains code that would run on this machine (it was built with --version-compatible): if you "
            "trust whoever built it, add --allow-host-code, or allow_host_code=True in Python"
        )
    if sidecar.plugin is not None and not sidecar.plugin_embedded:
        plugin = plugin_file.in_use(trt) or plugin_file.find_plugin(capabilities=[device.compute_capability])
        plugin_file.check_same(sidecar.plugin, plugin)
        plugin_file.check_architectures(plugin, [device.compute_capability])
        plugin_file.register(trt, plugin)
    logger = installation.make_logger(trt)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = allow_host_code and sidecar.version_compatible
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise RunFailed(
            f"{title_of(trt)} does not open {file}: {installation.last_error(logger)}; "
            "`doge-export verify` tells whether it is damaged, `doge-export trt` builds it again"
        )
    _check_interface(sidecar, trt, engine)
    opened = OpenedEngine(sidecar, trt, engine, runtime, logger, device)
    if sidecar.builder == RTX.name:
        compiled = cache_file(sidecar.engine["sha256"], sidecar.tensorrt, device.name)
        return dataclasses.replace(opened, just_in_time=JustInTime(trt, engine, compiled))
    return opened


def check_size(sidecar: Sidecar, file: Path) -> None:
    """Check that an engine has the size that it was written with, before TensorRT reads it.

    Raises:
        DogeExportError: it has another.
    """
    found, written = file.stat().st_size, sidecar.engine["bytes"]
    if found != written:
        raise DogeExportError(
            f"{file} has {found} bytes and was written with {written}: it is cut off or replaced; copy the folder "
            "again, or build it again with `doge-export trt`"
        )


def tensorrt_of(sidecar: Sidecar) -> ModuleType:
    """Return the TensorRT of the kind that built an engine.

    Raises:
        DogeExportError: it is not installed.
    """
    kind = KINDS.get(sidecar.builder)
    if kind is None:
        raise DogeExportError(
            f"the engine was built by {sidecar.builder!r}, and this doge-export opens those of {' and '.join(KINDS)}; "
            "install a newer one"
        )
    try:
        return installation.require_tensorrt(kind)
    except DogeExportError as error:
        raise DogeExportError(f"the engine was built by {kind.title} {sidecar.tensorrt}; {error}") from error


def check_tensorrt(sidecar: Sidecar, trt: ModuleType) -> None:
    """Check that this TensorRT opens the engine.

    Raises:
        DogeExportError: it has another version than the engine needs.
    """
    kind = kind_of(trt)
    built, here = release(sidecar.tensorrt), installation.version(trt)
    fits = built[0] == here[0] and here >= built if sidecar.version_compatible else built == here
    if not fits:
        other = " or a later one of its major version" if sidecar.version_compatible else ""
        raise DogeExportError(
            f"the engine was built by {kind.title} {sidecar.tensorrt}, and {title_of(trt)} is here: install "
            f"{sidecar.tensorrt}{other} (pip install {kind.requirement.format(dotted(built))}), or build it again"
        )


def check_gpu(sidecar: Sidecar, device: Device) -> None:
    """Check that this GPU runs the engine.

    Raises:
        DogeExportError: it is another than the engine needs.
    """
    here, built = device.compute_capability, sidecar.compute_capabilities
    fits = here >= (8, 0) if sidecar.hardware == "ampere+" else here in built
    if fits and sidecar.hardware == "none":
        fits = device.name == sidecar.gpu
    if fits:
        return
    capabilities = ", ".join(map(dotted, built))
    here_is = f"and here is {device.name} ({dotted(here)})"
    if sidecar.builder == RTX.name:
        raise DogeExportError(
            f"the engine was built for compute capability {capabilities}, {here_is}; build it again with "
            f"--compute-capability {here[0]}{here[1]}"
        )
    raise DogeExportError(
        f"the engine was built on {sidecar.gpu} (compute capability {capabilities}, --hw-compat {sidecar.hardware}), "
        f"{here_is}; build it again here"
    )


def _check_interface(sidecar: Sidecar, trt: ModuleType, engine: Any) -> None:
    """Check that the engine has the inputs and outputs of the sidecar, so that no buffer is too small."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
    if (inputs, {*names} - inputs) != ({*sidecar.inputs}, {*sidecar.outputs}):
        raise DogeExportError("engine.json names other inputs and outputs than the engine; build it again")
    types = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32"}
    for name, tensor in (sidecar.inputs | sidecar.outputs).items():
        dtype, shape = engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name))
        known = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
        # TensorRT may know less of an output's shape than the graph says.
        fits = shape == known if name in inputs else _agree(shape, known)
        if types.get(dtype) != tensor.dtype or not fits:
            raise DogeExportError(
                f"{name} is {dtype} {list(shape)} in the engine, and {tensor.dtype} {list(known)} in engine.json; "
                "build it again"
            )


def _agree(found: tuple[int, ...], known: tuple[int, ...]) -> bool:
    """Return whether two shapes are the same where both know a size; -1 is one that is not known."""
    return len(found) == len(known) and all(
        here == there or -1 in (here, there) for here, there in zip(found, known, strict=True)
    )
