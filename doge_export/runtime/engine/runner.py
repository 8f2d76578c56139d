"""Run an engine: one execution context for each profile, and decoding recorded in a CUDA graph.

The two contexts share their scratch memory, since they run one after the other on one stream. A single context would
have to switch its profile, and record its graph again, with every prompt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from doge_export.console import detail
from doge_export.errors import RunFailed
from doge_export.runtime.engine.buffers import Buffers
from doge_export.runtime.engine.device import Recorded
from doge_export.runtime.engine.installation import last_error
from doge_export.runtime.engine.open_engine import OpenedEngine
from doge_export.runtime.engine.sidecar import Sidecar

Sizes = tuple[int, int, int]
"""Rows, new tokens of each row, logits of each row."""


class Runner:
    """An opened engine with its memory.

    The decode context runs only with the sizes that its graph was recorded with, at the addresses that follow from
    them, so the graph stays valid whatever prompts run in between.

    Attributes:
        buffers: that the engine is bound to.
        scratch_bytes: device memory of the engine's layers.
        runs: number of runs so far.
    """

    def __init__(self, opened: OpenedEngine) -> None:
        # Freed first, if nobody calls `close`: contexts use the engine, what is compiled for it, and the memory.
        self._contexts: dict[str, Any] = {}
        self._opened, self._device = opened, opened.device
        self.buffers = Buffers(opened.device, opened.sidecar)
        engine = opened.engine
        profiles = range(len(opened.sidecar.profiles))
        self.scratch_bytes = max(int(engine.get_device_memory_size_for_profile_v2(index)) for index in profiles)
        scratch = self._device.allocate(self.scratch_bytes) if self.scratch_bytes else 0
        for index, name in enumerate(opened.sidecar.profiles):
            self._contexts[name] = self._context(index, scratch)
        self._bound: tuple[str, Sizes] | None = None
        self._shapes: dict[str, Sizes] = {}
        self._recorded: Recorded | None = None
        self._steps = 0
        self.runs = 0

    @property
    def sidecar(self) -> Sidecar:
        """The sidecar of the engine."""
        return self._opened.sidecar

    @property
    def recorded(self) -> bool:
        """True if steps of decoding are launched from a recorded graph."""
        return self._recorded is not None

    def run(self, sizes: Sizes, **inputs: np.ndarray) -> None:
        """Run the engine once and wait for the end; `buffers` then hold the outputs.

        Args:
            sizes: of the run. One new token and one logit make it a step of decoding, anything else a prompt.
            inputs: every input that is no cache, by name; names that the engine lacks are ignored.

        Raises:
            RunFailed: TensorRT or CUDA reports an error.
        """
        self._device.require_open()
        profile = "decode" if sizes[1:] == (1, 1) else "prefill"
        self.runs += 1
        self._bind(profile, sizes)
        self.buffers.fill(**inputs)
        try:
            if profile == "decode":
                self._step()
            else:
                self._enqueue(profile)
        finally:  # after Ctrl-C too: the next run overwrites host memory that this one may still read
            self._device.synchronize()

    def _context(self, index: int, scratch: int) -> Any:
        """Return an execution context of a profile."""
        trt, engine = self._opened.trt, self._opened.engine
        if self._opened.just_in_time is None:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = self._opened.just_in_time.context([*self._opened.sidecar.profiles][index])
        if context is None or not context.set_optimization_profile_async(index, self._device.stream):
            raise self._failure("make a context")
        if scratch:
            context.set_device_memory(scratch, self.scratch_bytes)
        return context

    def _bind(self, profile: str, sizes: Sizes) -> None:
        """Tell a context addresses and sizes, unless it has them already."""
        if self._bound == (profile, sizes):
            return
        self._bound = None  # after an interruption the context must count as not bound
        shapes = self.buffers.lay_out(*sizes)
        context = self._contexts[profile]
        for name, address in self.buffers.addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(f"bind {name}")
        if self._shapes.pop(profile, None) != sizes:
            if profile == "decode":
                self._forget()
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self._failure(f"take {name} of shape {list(shape)}")
            try:
                missing = context.infer_shapes()
            except RuntimeError as error:
                raise self._failure("infer its shapes") from error
            if missing:
                raise self._failure(f"run without the shapes of {', '.join(missing)}")
        self._shapes[profile] = sizes
        self._bound = profile, sizes

    def _step(self) -> None:
        """Run a step of decoding. TensorRT prepares in the first of a batch size; the second is recorded."""
        self._steps += 1
        if self._steps == 2:
            self._record()
        if self._recorded is not None:
            self._recorded.launch()
        else:
            self._enqueue("decode")

    def _record(self) -> None:
        """Record a step in a CUDA graph, and keep what was compiled for it; some machines cannot record."""
        if self._opened.just_in_time is not None:
            self._opened.just_in_time.save()
            if not self._contexts["decode"].is_stream_capturable(self._device.stream):
                detail("decoding is not recorded in a CUDA graph: TensorRT for RTX says that it cannot be")
                return
        try:
            self._recorded = self._device.record(lambda: self._enqueue("decode"))
        except RunFailed as error:
            detail(f"decoding is not recorded in a CUDA graph: {error}")

    def _enqueue(self, profile: str) -> None:
        self.buffers.upload()
        if not self._contexts[profile].execute_async_v3(self._device.stream):
            raise self._failure("run")
        self.buffers.download()

    def _forget(self) -> None:
        if self._recorded is not None:
            self._recorded.close()
        self._recorded, self._steps = None, 0

    def _failure(self, what: str) -> RunFailed:
        return RunFailed(f"the engine could not {what}: {last_error(self._opened.logger)}")

    def fork(self) -> Runner:
        """Return a runner of the same engine that shares its weights alone; both may run at the same time."""
        self._device.require_open()
        return Runner(dataclasses.replace(self._opened, device=self._device.fork()))

    def close(self) -> None:
        """Free all device memory, with the last runner of an engine its weights. Nothing runs any more."""
        self._forget()
        if self._opened.just_in_time is not None:
            self._opened.just_in_time.save()
        self._contexts.clear()
        self._opened = dataclasses.replace(self._opened, engine=None, runtime=None, just_in_time=None)
        self._device.close()
