"""One GPU through cuda-python: memory, copies, and CUDA graphs."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError, RunFailed

ALIGNMENT = 256
"""Alignment in bytes that TensorRT requires of addresses."""


class Device:
    """The current GPU and one stream, on which everything runs in order.

    All memory is freed by `close`, or when the device is garbage collected. Every method may raise RunFailed for an
    error that CUDA reports, and DogeExportError after `close`.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._cuda = runtime
        self._is_open = True
        self.stream = int(self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self._marks: list[Any] = []
        owned = (self._device_memory, self._host_memory, self._marks)
        self._release = weakref.finalize(self, _release, runtime, self.stream, *owned)

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Compute capability: (8, 9) for an RTX 4090."""
        attribute, device = self._cuda.cudaDeviceAttr, self._call("cudaGetDevice")
        major = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, device)
        minor = self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, device)
        return int(major), int(minor)

    @property
    def name(self) -> str:
        """Name that the driver gives: "NVIDIA GeForce RTX 4090"."""
        name: bytes = self._call("cudaGetDeviceProperties", self._call("cudaGetDevice")).name
        return name.split(b"\0")[0].decode()

    def fork(self) -> Device:
        """Return the same GPU with another stream, and memory that is freed for itself."""
        return Device(self._cuda)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of zeros on the device."""
        address = int(self._call("cudaMalloc", size))
        self._device_memory.append(address)
        self._call("cudaMemsetAsync", address, 0, size, self.stream)
        return address

    def pinned(self, size: int) -> np.ndarray:
        """Return zeros uint8 [size] in pinned host memory."""
        address = int(self._call("cudaMallocHost", size))
        self._host_memory.append(address)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[...] = 0
        return array

    def upload(self, address: int, array: np.ndarray) -> None:
        """Enqueue the copy of a contiguous array to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Enqueue the copy from the device into a contiguous array."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy_column(self, to: int, source: int, pitch: int, size: int, rows: int) -> None:
        """Enqueue the copy of the first `size` bytes of each row of `pitch` bytes, on the device, into dense rows."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", to, size, source, pitch, size, rows, kind, self.stream)

    def mark(self) -> Mark:
        """Return a mark that can be set on the stream, again and again, and waited for."""
        mark = Mark(self, self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming))
        self._marks.append(mark.event)
        return mark

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, work: Callable[[], None]) -> Recorded:
        """Record what `work` puts on the stream as a CUDA graph, without running it."""
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
        """Check that memory may still be used.

        Raises:
            DogeExportError: the device was closed.
        """
        if not self._is_open:
            raise DogeExportError("this engine was closed; load its folder again")

    def close(self) -> None:
        """Free everything, once. Arrays of `pinned` must not be used any more."""
        self._release()
        self._is_open = False

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; return its result, None if it has none."""
        self.require_open()
        error, *results = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            advice = "; lower --max-batch or --max-length" if error.name == "cudaErrorMemoryAllocation" else ""
            raise RunFailed(f"CUDA reports {error.name} from {name}{advice}")
        return results[0] if results else None


def _release(
    runtime: ModuleType, stream: int, device_memory: list[int], host_memory: list[int], marks: list[Any]
) -> None:
    """Free everything; errors are ignored, since nobody is left to handle them."""
    runtime.cudaStreamSynchronize(stream)
    for address in device_memory:
        runtime.cudaFree(address)
    for address in host_memory:
        runtime.cudaFreeHost(address)
    for event in marks:
        runtime.cudaEventDestroy(event)
    runtime.cudaStreamDestroy(stream)


class Mark:
    """A place on a device's stream; waiting for it waits for the work before it alone."""

    def __init__(self, device: Device, event: Any) -> None:
        self._device, self.event = device, event

    def set(self) -> None:
        """Put the mark behind the work that is on the stream by now."""
        self._device._call("cudaEventRecord", self.event, self._device.stream)

    def wait(self) -> None:
        """Wait until the stream has passed the mark."""
        self._device._call("cudaEventSynchronize", self.event)


class Recorded:
    """An instantiated CUDA graph."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        """Enqueue the recorded work on the stream."""
        self._device._call("cudaGraphLaunch", self._executable, self._device.stream)

    def close(self) -> None:
        """Free the graph."""
        self._device._call("cudaGraphExecDestroy", self._executable)
