"""The TensorRT and CUDA of this machine. A plan or a dry run needs nothing of this."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.plugin.tensorrt_versions import OLDEST, dotted, release


def require() -> tuple[ModuleType, ModuleType]:
    """Return the modules `tensorrt` and `cuda.bindings.runtime`.

    Call this before TensorRT's factories, which end the process if there is no driver.

    Raises:
        DogeExportError: something is missing or too old; the message names everything that is.
    """
    trt, runtime = _imported("tensorrt"), _imported("cuda.bindings.runtime")
    missing = []
    if trt is None:
        missing.append("TensorRT (Python package tensorrt)")
    if runtime is None:
        missing.append("cuda-python")
    if missing:
        raise DogeExportError(
            f"engines need {' and '.join(missing)}, which this Python lacks: {install_command('trt')}; "
            "`doge-export trt --dry-run` runs without"
        )
    assert trt is not None and runtime is not None
    if version(trt)[:2] < OLDEST:
        raise DogeExportError(
            f"TensorRT {trt.__version__} is here, {dotted(OLDEST)} or newer is needed: "
            f"{install_command('trt')} --upgrade"
        )
    problem = _no_gpu(runtime)
    if problem:
        older = ", no older than cuda-python's CUDA (for an older one: pip install 'cuda-python<13')"
        driver = older if "InsufficientDriver" in problem else ""
        raise DogeExportError(
            f"no NVIDIA GPU can be used here ({problem}): an engine is built and run on a GPU with its driver "
            f"installed{driver}; `doge-export trt --dry-run` needs none"
        )
    return trt, runtime


def version(trt: ModuleType) -> tuple[int, ...]:
    """Return the version of TensorRT: (11, 4, 0, 106)."""
    return release(trt.__version__)


def make_logger(trt: ModuleType) -> Any:
    """Return a tensorrt.ILogger that keeps errors in `errors` and shows warnings with -v."""
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(" ".join(message.split()))
            elif level == severity.WARNING:
                console.detail(f"TensorRT: {message}")

    return Logger()


def last_error(logger: Any) -> str:
    """Return the last error that TensorRT logged, for a message."""
    return logger.errors[-1] if logger.errors else "it gave no reason; -v shows its warnings"


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
