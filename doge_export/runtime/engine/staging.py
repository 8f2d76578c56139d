"""Tensors that are copied between host and device in one transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from doge_export.runtime.engine.device import ALIGNMENT, Device
from doge_export.runtime.engine.sidecar import EngineTensor, storage

Sizes = Mapping[str, int]
"""Sizes of the dynamic axes, by name."""


class StagedTensors:
    """Tensors side by side in one block of device memory, and copies of the block in pinned host memory.

    All are allocated once, for the largest sizes; a run of smaller sizes uses, and copies, only the first bytes.

    Args:
        device: that the tensors lie on.
        tensors: by name.
        largest: largest sizes of the dynamic axes.
        copies: copies on the host; with two, one can be read or written while a transfer uses the other.

    Attributes:
        addresses: name -> address on the device, for the sizes of the last `lay_out`.
        copy: number of the host copy that is read, written and transferred.
    """

    def __init__(self, device: Device, tensors: Mapping[str, EngineTensor], largest: Sizes, copies: int = 1) -> None:
        self._device, self._tensors = device, tensors
        size = self._offsets(largest)[1]
        self._address = device.allocate(size) if tensors else 0
        self._hosts = [device.pinned(size) if tensors else np.empty(0, np.uint8) for _ in range(copies)]
        self.copy = 0
        self.lay_out(largest)

    @property
    def views(self) -> dict[str, np.ndarray]:
        """Name -> numpy array on the host in `storage(dtype)`, for the sizes of the last `lay_out`."""
        return self._views[self.copy]

    def lay_out(self, sizes: Sizes) -> None:
        """Place every tensor for a run of these sizes."""
        offsets, self._used = self._offsets(sizes)
        self.addresses = {name: self._address + offset for name, offset in offsets.items()}
        self._views = [self._views_of(host, offsets, sizes) for host in self._hosts]

    def _views_of(self, host: np.ndarray, offsets: Mapping[str, int], sizes: Sizes) -> dict[str, np.ndarray]:
        """Return the tensors in a host copy."""
        views = {}
        for name, offset in offsets.items():
            tensor = self._tensors[name]
            end = offset + nbytes(tensor, sizes)
            views[name] = host[offset:end].view(storage(tensor.dtype)).reshape(shape_of(tensor, sizes))
        return views

    def upload(self) -> None:
        """Enqueue the copy to the device on its stream."""
        if self._used:
            self._device.upload(self._address, self._hosts[self.copy][: self._used])

    def download(self) -> None:
        """Enqueue the copy to the host on the device's stream."""
        if self._used:
            self._device.download(self._hosts[self.copy][: self._used], self._address)

    def _offsets(self, sizes: Sizes) -> tuple[dict[str, int], int]:
        """Return the offset of each tensor, and the bytes of all."""
        offsets, end = {}, 0
        for name, tensor in self._tensors.items():
            offsets[name] = end
            end += -(-nbytes(tensor, sizes) // ALIGNMENT) * ALIGNMENT
        return offsets, end


def shape_of(tensor: EngineTensor, sizes: Sizes) -> tuple[int, ...]:
    """Return the shape for these sizes of the dynamic axes."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)


def nbytes(tensor: EngineTensor, sizes: Sizes) -> int:
    """Return the bytes for these sizes of the dynamic axes."""
    return tensor.itemsize * math.prod(shape_of(tensor, sizes))
