"""The TensorRT and CUDA of this machine. A plan needs nothing of this."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.plugin.tensorrt_versions import OLDEST, dotted, release
from doge_export.runtime.engine.kinds import KINDS, RTX, TENSORRT, Kind, kind_of, title_of
from doge_export.runtime.engine.library_name import make_known_as

OLDEST_RTX = (1, 7)
"""The first TensorRT for RTX that engines were built with."""


def choose(asked: str | None = None) -> ModuleType:
    """Return the TensorRT that is to build, ready to use.

    Args:
        asked: name of a kind. None: the one that is installed; of both, TensorRT where there is a GPU.

    Raises:
        DogeExportError: there is no such kind, or it is not installed, or too old.
    """
    if asked is not None:
        if asked not in KINDS:
            raise DogeExportError(f"unknown builder {asked!r}; choose {' or '.join(KINDS)}")
        return require_tensorrt(KINDS[asked])
    here = [kind for kind in (TENSORRT, RTX) if _module(kind) is not None]
    if not here:
        raise DogeExportError(
            f"engines need TensorRT, which this Python lacks: {install_command(RTX.extra)} for {RTX.title}, which "
            f"builds on any machine, or {install_command(TENSORRT.extra)} for {TENSORRT.title} on the machine of the "
            "GPU; `doge-export trt --dry-run` runs without"
        )
    return require_tensorrt(here[0] if len(here) == 1 or cuda_and_problem()[1] is None else RTX)


def require_tensorrt(kind: Kind) -> ModuleType:
    """Return the module of a kind.

    Raises:
        DogeExportError: it is not installed, or too old.
    """
    trt = _module(kind)
    if trt is None:
        raise DogeExportError(
            f"this needs {kind.title} (Python package {kind.modules[-1]}), which this Python lacks: "
            f"{install_command(kind.extra)}"
        )
    oldest = OLDEST_RTX if kind == RTX else OLDEST
    if version(trt)[:2] < oldest:
        raise DogeExportError(
            f"{title_of(trt)} is here, {dotted(oldest)} or newer is needed: {install_command(kind.extra)} --upgrade"
        )
    if kind == RTX:
        make_known_as("libtensorrt_rtx.so", f"libtensorrt_rtx.so.{version(trt)[0]}")
    return trt


def require_cuda(kind: Kind) -> ModuleType:
    """Return the module `cuda.bindings.runtime`, where a GPU can be used.

    Call this before `Runtime` of either kind and before the `Builder` of TensorRT, which end the process if there is
    no driver.

    Raises:
        DogeExportError: cuda-python is missing, or a GPU that it could use.
    """
    runtime, problem = cuda_and_problem()
    if runtime is None:
        raise DogeExportError(
            f"engines are run through cuda-python, which this Python lacks: {install_command(kind.extra)}"
        )
    if problem:
        older = ", no older than cuda-python's CUDA (for an older one: pip install 'cuda-python<13')"
        driver = older if "InsufficientDriver" in problem else ""
        what = "is built and run" if kind == TENSORRT else "is run"
        instead = f"; {RTX.title} builds without one: {install_command(RTX.extra)}" if kind == TENSORRT else ""
        raise DogeExportError(
            f"no NVIDIA GPU can be used here ({problem}): an engine of {kind.title} {what} on a GPU with its driver "
            f"installed{driver}{instead}"
        )
    return runtime


def cuda_and_problem() -> tuple[ModuleType | None, str | None]:
    """Return the module `cuda.bindings.runtime`, if it is there, and why no GPU can be used, if so."""
    runtime = _imported("cuda.bindings.runtime")
    return runtime, "no cuda-python" if runtime is None else _no_gpu(runtime)


def version(trt: ModuleType) -> tuple[int, ...]:
    """Return the version of either TensorRT: (11, 4, 0, 106)."""
    return release(trt.__version__)


def make_logger(trt: ModuleType) -> Any:
    """Return the tensorrt.ILogger of this process, emptied; it keeps errors and warnings, and shows warnings with -v.

    There is one for each TensorRT, and it lives as long as the process: the registry, and through it the plugin, write
    to the first logger that they were given for ever. It has `errors` and `warnings`, one line each, and `layers`: the
    builder's list of layers, if it is verbose.
    """
    if trt.__name__ in _loggers:
        logger = _loggers[trt.__name__]
        for lines in (logger.errors, logger.warnings, logger.layers):
            lines.clear()
        return logger
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(" ".join(message.split()))
            elif level == severity.WARNING:
                self.warnings.append(" ".join(message.split()))
                console.detail(f"{kind_of(trt).title}: {message}")
            elif "LayerType:" in message:
                self.layers += message.splitlines()

    return _loggers.setdefault(trt.__name__, Logger())


_loggers: dict[str, Any] = {}


def last_error(logger: Any) -> str:
    """Return the last error that TensorRT logged, for a message."""
    return logger.errors[-1] if logger.errors else "it gave no reason; -v shows its warnings"


def _module(kind: Kind) -> ModuleType | None:
    return next((module for name in kind.modules if (module := _imported(name)) is not None), None)


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        console.detail(f"{name}: {error}")
        return None


def _no_gpu(runtime: ModuleType) -> str | None:
    """Return why no GPU can be used; None if one can."""
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # cuda-python found no driver library to call
        return str(error)
    if status != runtime.cudaError_t.cudaSuccess:
        return str(status.name)
    return None if count else "CUDA counts none"
