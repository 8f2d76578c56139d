"""Compilation of TensorRT for RTX's engines on the GPU that runs them, kept in the user's cache folder.

An engine of TensorRT for RTX holds kernels in a form that is compiled when an execution context is made and when it
meets new shapes. The result is kept for the next process, by engine, version and GPU: not in the engine's folder, whose
files the manifest lists. TensorRT refuses what it did not write itself for this GPU and driver, and then compiles anew.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from doge_export.console import detail, log
from doge_export.errors import DogeExportError, RunFailed
from doge_export.paths import user_cache

PROFILE_STRATEGIES = {"prefill": "LAZY", "decode": "EAGER"}
"""How kernels for a new shape are made, by profile.

Prompts come in any length: kernels for any shape serve until those for this one are compiled in the background. Steps
of decoding have one shape a batch size, and are recorded in a CUDA graph, which keeps the kernels that it was recorded
with: these are compiled first.
"""


KEPT = 16
"""Files of the cache; those that were used last stay."""


class JustInTime:
    """Makes an engine's contexts, and keeps what is compiled for them.

    Args:
        rtx: the module of TensorRT for RTX.
        engine: deserialised.
        file: of the cache. None: nothing is kept.
    """

    def __init__(self, rtx: Any, engine: Any, file: Path | None) -> None:
        self._rtx, self._engine, self._file = rtx, engine, file
        self._cache = engine.create_runtime_config().create_runtime_cache()
        self._stored = b""
        if file is not None:
            with contextlib.suppress(OSError):  # there is none yet, or it may not be read
                self._stored = file.read_bytes()
        if self._stored and not self._cache.deserialize(self._stored):
            detail(f"{file} is of another GPU, driver or version; compiled anew")
            self._stored = b""
        if file is not None and self._stored:
            with contextlib.suppress(OSError):
                file.touch()
        if not self._stored:
            log("compiling the engine for this GPU; the next start finds it done")

    def context(self, profile: str) -> Any:
        """Return an execution context for runs in a profile, whose memory the caller gives; None if it fails."""
        rtx = self._rtx
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = rtx.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, PROFILE_STRATEGIES[profile])
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def save(self) -> None:
        """Keep what was compiled since it was last kept. That it cannot be written stops nobody."""
        from doge_export.package.atomic_file import written_file

        if self._file is None:
            return
        serialized = self._cache.serialize()
        if serialized is None:
            detail("what was compiled is not kept: TensorRT for RTX does not serialize it")
            return
        compiled = bytes(serialized)
        if compiled == self._stored:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with written_file("the compiled engine", self._file) as stream:
                stream.write(compiled)
            self._stored = compiled
            _forget_old(self._file.parent)
        except (OSError, DogeExportError, RunFailed) as error:
            detail(f"what was compiled is not kept: {error}")


def cache_file(engine: str, version: str, gpu: str) -> Path | None:
    """Return the file that keeps what is compiled of an engine; None if the user has no cache folder.

    Args:
        engine: sha256 of the engine.
        version: of TensorRT for RTX.
        gpu: name of the GPU.
    """
    try:
        folder = user_cache()
    except RuntimeError:  # a user without a home, as in some containers
        return None
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in (engine[:16], version, gpu))
    return folder / "compiled" / f"{name}.bin"


def _forget_old(folder: Path) -> None:
    """Delete what was compiled for engines, versions or GPUs that have not been used for longest."""
    files = sorted(folder.glob("*.bin"), key=lambda file: file.stat().st_mtime)
    for file in files[:-KEPT]:
        file.unlink(missing_ok=True)
