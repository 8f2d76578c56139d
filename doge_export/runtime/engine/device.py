"""One GPU through cuda-python: memory, copies, and work recorded once to be repeated."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError, RunFailed

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the addresses that it is given."""


class Device:
    """The current GPU and one stream, on which everything runs in order.

    What was allocated is freed by `close`, or when nobody holds the device any more. Raises RunFailed where CUDA
    reports an error, DogeExportError after `close`.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._cuda = runtime
        self._is_open = True
        self.stream = int(self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self._release = weakref.finalize(self, _release, runtime, self.stream, self._device_memory, self._host_memory)
        self.allocated = 0
        """Bytes on the device."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(8, 9) for an RTX 4090."""
        attribute, device = self._cuda.cudaDeviceAttr, self._call("cudaGetDevice")
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, device)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, device)
        return int(major), int(minor)

    @property
    def name(self) -> str:
        """As the driver calls it: "NVIDIA GeForce RTX 4090"."""
        name: bytes = self._call("cudaGetDeviceProperties", self._call("cudaGetDevice")).name
        return name.split(b"\0")[0].decode()

    def allocate(self, size: int) -> int:
        """The address of `size` bytes of zeros on the device."""
        address = int(self._call("cudaMalloc", size))
        self._device_memory.append(address)
        self.allocated += size
        self._call("cudaMemsetAsync", address, 0, size, self.stream)
        return address

    def pinned(self, size: int) -> np.ndarray:
        """uint8 [size] in memory of the host that copies to and from the device need not stage."""
        address = int(self._call("cudaMallocHost", size))
        self._host_memory.append(address)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[...] = 0
        return array

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the device, in the stream's order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copies from the device into a contiguous array, in the stream's order."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Waits until the stream has done everything."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Recorded:
        """What `work` puts on the stream, to be launched as often as wanted; it does not run now."""
        self._call("cudaStreamBeginCapture", self.stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return Recorded(self, self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def require_open(self) -> None:
        """Raises DogeExportError after `close`, when what was allocated must not be touched."""
        if not self._is_open:
            raise DogeExportError("this engine was closed; load its folder again")

    def close(self) -> None:
        """Frees everything, once. Arrays of `pinned` must not be used any more."""
        self._release()
        self._is_open, self.allocated = False, 0

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of the CUDA runtime; its one result, None where it has none."""
        self.require_open()
        error, *results = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            advice = "; lower --max-batch or --max-length" if error.name == "cudaErrorMemoryAllocation" else ""
            raise RunFailed(f"CUDA reports {error.name} from {name}{advice}")
        return results[0] if results else None


def _release(runtime: ModuleType, stream: int, device_memory: list[int], host_memory: list[int]) -> None:
    """Whatever CUDA reports: there is nobody left who could do better."""
    runtime.cudaStreamSynchronize(stream)
    for address in device_memory:
        runtime.cudaFree(address)
    for address in host_memory:
        runtime.cudaFreeHost(address)
    runtime.cudaStreamDestroy(stream)


class Recorded:
    """A CUDA graph, instantiated."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        """Puts the recorded work on the stream."""
        self._device._call("cudaGraphLaunch", self._executable, self._device.stream)

    def close(self) -> None:
        """Forgets it."""
        self._device._call("cudaGraphExecDestroy", self._executable)
