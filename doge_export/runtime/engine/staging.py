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
    """Tensors side by side in one block of device memory, and a copy of the block in pinned host memory.

    Both are allocated once, for the largest sizes; a run of smaller sizes uses, and copies, only the first bytes.

    Attributes:
        addresses: name -> address on the device, for the sizes of the last `lay_out`.
        views: name -> numpy array on the host in `storage(dtype)`, for the sizes of the last `lay_out`.
    """

    def __init__(self, device: Device, tensors: Mapping[str, EngineTensor], largest: Sizes) -> None:
        self._device, self._tensors = device, tensors
        size = self._offsets(largest)[1]
        self._address = device.allocate(size) if tensors else 0
        self._host = device.pinned(size) if tensors else np.empty(0, np.uint8)
        self.lay_out(largest)

    def lay_out(self, sizes: Sizes) -> None:
        """Place every tensor for a run of these sizes."""
        offsets, self._used = self._offsets(sizes)
        self.addresses = {name: self._address + offset for name, offset in offsets.items()}
        self.views: dict[str, np.ndarray] = {}
        for name, offset in offsets.items():
            tensor = self._tensors[name]
            end = offset + nbytes(tensor, sizes)
            self.views[name] = self._host[offset:end].view(storage(tensor.dtype)).reshape(shape_of(tensor, sizes))

    def upload(self) -> None:
        """Enqueue the copy to the device on its stream."""
        if self._used:
            self._device.upload(self._address, self._host[: self._used])

    def download(self) -> None:
        """Enqueue the copy to the host on the device's stream."""
        if self._used:
            self._device.download(self._host[: self._used], self._address)

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
