"""Run an engine: one execution context for each profile, and decoding recorded in a CUDA graph.

The two contexts share their scratch memory, since they run one after the other on one stream. A single context would
have to switch its profile, and record its graph again, with every prompt.

A step of decoding can be followed by the next one before anybody has read its best token: the device copies the token
into the next step's input, and works on while the host decodes text and decides. Python takes 60 to 110 us a token, an
engine of a small model about 250.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from doge_export.console import detail
from doge_export.errors import RunFailed
from doge_export.runtime.engine.buffers import COPIES, Buffers
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
        is_ahead: True while the step after the current one is on the device, see `follow`.
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
        self._recorded: dict[tuple[int, bool], Recorded] = {}
        self._can_record = True
        self._steps = 0
        self._copy, self._marks = 0, [self._device.mark() for _ in range(COPIES)]
        self._is_busy = False
        self.is_ahead = False
        self.runs = 0

    @property
    def sidecar(self) -> Sidecar:
        """The sidecar of the engine."""
        return self._opened.sidecar

    @property
    def recorded(self) -> bool:
        """True if steps of decoding are launched from a recorded graph."""
        return bool(self._recorded)

    def run(self, sizes: Sizes, **inputs: np.ndarray) -> None:
        """Run the engine once and wait for the end; `buffers` then hold the outputs. See `start`."""
        try:
            self.start(sizes, **inputs)
        finally:
            self._settle()

    def start(self, sizes: Sizes, **inputs: np.ndarray) -> None:
        """Enqueue one run; a step that was looked ahead to is given up.

        Args:
            sizes: of the run. One new token and one logit make it a step of decoding, anything else a prompt.
            inputs: every input that is no cache, by name; names that the engine lacks are ignored.

        Raises:
            RunFailed: TensorRT or CUDA reports an error.
        """
        self._device.require_open()
        self._settle()
        profile = "decode" if sizes[1:] == (1, 1) else "prefill"
        self.runs += 1
        self._bind(profile, sizes)
        self._use(0)
        self.buffers.fill(**inputs)
        self._is_busy = True
        if profile == "decode":
            self._step(0, follows=False)
        else:
            self._enqueue(profile)
        self._marks[0].set()

    def follow(self, **inputs: np.ndarray) -> None:
        """Enqueue the step that reads the best token of each row of the current step, without waiting for that.

        Args:
            inputs: as for `start`; the device replaces input_ids.

        Raises:
            RunFailed: TensorRT or CUDA reports an error.
        """
        copy = 1 - self._copy
        self.runs += 1
        self.is_ahead = True
        try:
            self.buffers.use(copy)
            self.buffers.fill(**inputs)
            self._step(copy, follows=True)
            self._marks[copy].set()
        finally:
            self.buffers.use(self._copy)

    def advance(self) -> None:
        """Make the step that was looked ahead to the current one."""
        self._use(1 - self._copy)
        self.is_ahead = False

    def wait(self) -> None:
        """Wait for the end of the current run; `buffers` then hold its best tokens.

        Raises:
            RunFailed: CUDA reports an error.
        """
        self._marks[self._copy].wait()
        self._is_busy = self.is_ahead

    def _use(self, copy: int) -> None:
        self._copy = copy
        self.buffers.use(copy)

    def _settle(self) -> None:
        """Wait until the device is idle, after Ctrl-C too: a run reads host memory that the next one writes."""
        if self._is_busy:
            self._device.synchronize()
        self._is_busy = self.is_ahead = False

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

    def _step(self, copy: int, *, follows: bool) -> None:
        """Enqueue a step of decoding. TensorRT prepares in the first of a batch size; later ones are recorded."""
        self._steps += 1
        if self._steps > 1 and self._can_record and (copy, follows) not in self._recorded:
            self._record(copy, follows)
        recorded = self._recorded.get((copy, follows))
        if recorded is not None:
            recorded.launch()
        else:
            self._enqueue("decode", follows)

    def _record(self, copy: int, follows: bool) -> None:
        """Record a step in a CUDA graph, and keep what was compiled for it; some machines cannot record."""
        if self._opened.just_in_time is not None and not self._recorded:
            self._opened.just_in_time.save()
            if not self._contexts["decode"].is_stream_capturable(self._device.stream):
                self._can_record = False
                detail("decoding is not recorded in a CUDA graph: TensorRT for RTX says that it cannot be")
                return
        try:
            self._recorded[copy, follows] = self._device.record(lambda: self._enqueue("decode", follows))
        except RunFailed as error:
            self._can_record = False
            detail(f"decoding is not recorded in a CUDA graph: {error}")

    def _enqueue(self, profile: str, follows: bool = False) -> None:
        self.buffers.upload()
        if follows:
            self.buffers.follow()
        if not self._contexts[profile].execute_async_v3(self._device.stream):
            raise self._failure("run")
        self.buffers.download()

    def _forget(self) -> None:
        for recorded in self._recorded.values():
            recorded.close()
        self._recorded, self._can_record, self._steps = {}, True, 0

    def _failure(self, what: str) -> RunFailed:
        return RunFailed(f"the engine could not {what}: {last_error(self._opened.logger)}")

    def fork(self) -> Runner:
        """Return a runner of the same engine that shares its weights alone; both may run at the same time."""
        self._device.require_open()
        return Runner(dataclasses.replace(self._opened, device=self._device.fork()))

    def close(self) -> None:
        """Free all device memory, with the last runner of an engine its weights. Nothing runs any more."""
        if self._is_busy:
            self._settle()
        self._forget()
        if self._opened.just_in_time is not None:
            self._opened.just_in_time.save()
        self._contexts.clear()
        self._opened = dataclasses.replace(self._opened, engine=None, runtime=None, just_in_time=None)
        self._device.close()
