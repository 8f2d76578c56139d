"""The CUDA runtime in the host's memory: a stream is a list of work that runs when somebody waits for it.

Names and signatures are those of cuda-python, where it is installed. Device memory starts as garbage, and a copy that
leaves an allocation fails the test, as does host memory that is used before the stream has been waited for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import inspect
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Names:
    """Enumerations where cuda-python is not installed: every name is there and equal to itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._children: dict[str, Names] = {}

    def __getattr__(self, name: str) -> Names:
        return self._children.setdefault(name, Names(name))


def real_cuda() -> ModuleType | None:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return None
    from cuda.bindings import runtime

    return runtime


class FakeCuda:
    """Stands for the module cuda.bindings.runtime."""

    def __init__(self, capability: tuple[int, int] = (8, 9), fail: dict[str, str] | None = None) -> None:
        self.real = real_cuda()
        self.capability, self.fail = capability, fail or {}
        self.gpu = b"NVIDIA GeForce RTX 4090"
        self.calls: Counter[str] = Counter()
        self.device: dict[int, np.ndarray] = {}
        self.host: dict[int, np.ndarray] = {}
        self.work: list[Any] = []  # callables, and events that mark a place between them
        self.events: set[object] = set()
        self.captured: list[Callable[[], None]] | None = None
        self.graphs = 0
        self.downloaded: list[int] = []

    def __getattr__(self, name: str) -> Any:
        if self.real is not None:
            assert hasattr(self.real, name), f"cuda.bindings.runtime has no {name}"
        body = type(self).__dict__.get(f"_{name}")
        if body is None:
            value = Names(name) if self.real is None else getattr(self.real, name)
            assert not callable(value) or inspect.isclass(value) or isinstance(value, Names), f"no script for {name}"
            setattr(self, name, value)
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.real is not None:
                inspect.signature(getattr(self.real, name)).bind(*arguments)
            self.calls[name] += 1
            if name in self.fail:
                return getattr(self.cudaError_t, self.fail[name]), None
            result = body(self, *arguments)
            success = self.cudaError_t.cudaSuccess
            return (success,) if result is None else (success, result)

        return call

    def put(self, work: Callable[[], None]) -> None:
        """On the stream; or, while a graph is recorded, into the graph."""
        (self.work if self.captured is None else self.captured).append(work)

    def at(self, address: int, size: int) -> np.ndarray:
        """uint8 [size] of the device's memory."""
        for start, memory in self.device.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not memory of the device")

    def _cudaGetDeviceCount(self) -> int:
        return 1

    def _cudaGetDevice(self) -> int:
        return 0

    def _cudaDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        return self.capability[["Major", "Minor"].index(attribute.name[-5:])]

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(name=self.gpu.ljust(256, b"\0"))

    def _cudaStreamCreateWithFlags(self, flags: Any) -> int:
        return 7

    def _cudaStreamDestroy(self, stream: int) -> None:
        assert stream == 7

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert self.captured is None, "a stream that is recorded cannot be waited for"
        work, self.work = self.work, []
        for item in work:
            self._do(item)

    def _memory(self, size: int) -> tuple[int, np.ndarray]:
        assert size > 0
        room = np.full(size + 256, 0xAB, np.uint8)
        start = -room.ctypes.data % 256
        return room.ctypes.data + start, room[start : start + size]

    def _cudaMalloc(self, size: int) -> int:
        assert self.captured is None, "no memory may be allocated while a graph is recorded"
        address, self.device[address] = (pair := self._memory(size))[0], pair[1]
        return address

    def _cudaFree(self, address: int) -> None:
        del self.device[address]

    def _cudaMallocHost(self, size: int) -> int:
        address, memory = self._memory(size)
        self.host[address] = memory
        return address

    def _cudaFreeHost(self, address: int) -> None:
        del self.host[address]

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        memory = self.at(address, size)
        self.put(lambda: memory.fill(value))

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:
        self.at(to if kind.name == "cudaMemcpyHostToDevice" else source, size)
        comes_back = kind.name == "cudaMemcpyDeviceToHost"

        def copy() -> None:
            ctypes.memmove(to, source, size)
            self.downloaded += [size] * comes_back

        self.put(copy)

    def _cudaMemcpy2DAsync(
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: Any, stream: int
    ) -> None:
        assert kind.name == "cudaMemcpyDeviceToDevice" and width <= min(pitch, to_pitch)
        rows = [(self.at(to + row * to_pitch, width), self.at(source + row * pitch, width)) for row in range(height)]

        def copy() -> None:
            for there, here in rows:
                there[:] = here

        self.put(copy)

    def _cudaEventCreateWithFlags(self, flags: Any) -> object:
        event = object()
        self.events.add(event)
        return event

    def _cudaEventDestroy(self, event: object) -> None:
        self.events.remove(event)

    def _cudaEventRecord(self, event: object, stream: int) -> None:
        assert event in self.events and self.captured is None
        self.work = [item for item in self.work if item is not event]
        self.work.append(event)

    def _cudaEventSynchronize(self, event: object) -> None:
        while event in self.work:
            self._do(self.work.pop(0))

    def _do(self, item: Any) -> None:
        if item not in self.events:
            item()

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        self.captured = []

    def _cudaStreamEndCapture(self, stream: int) -> list[Callable[[], None]] | None:
        captured, self.captured = self.captured, None
        return captured

    def _cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Callable[[], None], ...]:
        self.graphs += 1
        return tuple(graph)

    def _cudaGraphDestroy(self, graph: list[Callable[[], None]]) -> None:
        graph.clear()

    def _cudaGraphExecDestroy(self, executable: tuple[Callable[[], None], ...]) -> None:
        self.graphs -= 1

    def _cudaGraphLaunch(self, executable: tuple[Callable[[], None], ...], stream: int) -> None:
        for item in executable:
            self.put(item)
