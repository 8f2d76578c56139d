"""What an engine is bound to: caches in place, inputs in one block that is copied at once, logits.

Everything is allocated once, for the largest batch; a smaller one uses the first bytes of each buffer.
"""

from __future__ import annotations

import math

import numpy as np

from doge_export.trt.device import ALIGNMENT, Device
from doge_export.trt.sidecar import CachePair, Sidecar, Tensor, as_float32, storage

LOGITS = "logits"


class Buffers:
    """The device memory of an engine's inputs and outputs, and the host's side of what is copied.

    Attributes:
        addresses: by name of input and output.
    """

    def __init__(self, device: Device, sidecar: Sidecar) -> None:
        self._device, self._sidecar = device, sidecar
        self.addresses: dict[str, int] = {}
        for cache in sidecar.caches:
            self.addresses[cache.past] = self.addresses[cache.present] = device.allocate(_bytes(cache))
        cached = {*self.addresses}
        self._tensors = {
            name: tensor for name, tensor in (sidecar.inputs | sidecar.outputs).items() if name not in cached
        }
        self._inputs = [name for name in sidecar.inputs if name not in cached]
        self._sizes = {"batch": sidecar.max_batch, "sequence": self.longest, "num_logits": sidecar.max_logits}
        self._block = device.allocate(self._place_inputs(self._sizes)[1])
        self._staged = device.pinned(self._place_inputs(self._sizes)[1])
        for name in sidecar.outputs:
            if name not in cached:
                self.addresses[name] = device.allocate(self._size(name, self._sizes))
        self._logits = device.pinned(self._size(LOGITS, self._sizes))

    @property
    def longest(self) -> int:
        """New tokens of a row in one run."""
        longest: int = self._sidecar.profiles["prefill"]["input_ids"][2][1]
        return longest

    def lay_out(self, batch: int, sequence: int, num_logits: int) -> dict[str, tuple[int, ...]]:
        """Places the inputs for a run of these sizes, close together; their shapes by name."""
        sizes = {"batch": batch, "sequence": sequence, "num_logits": num_logits}
        offsets, self._used = self._place_inputs(sizes)
        self._views: dict[str, np.ndarray] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, offset in offsets.items():
            self.addresses[name] = self._block + offset
            shapes[name] = shape = _shape(self._tensors[name], sizes)
            dtype = storage(self._tensors[name].dtype)
            end = offset + dtype.itemsize * math.prod(shape)
            self._views[name] = self._staged[offset:end].view(dtype).reshape(shape)
        for cache in self._sidecar.caches:
            shapes[cache.past] = (batch, *cache.shape[1:])
        shape = batch, num_logits, int(self._tensors[LOGITS].shape[-1])
        self._answer = self._logits[: 4 * math.prod(shape)].view(np.float32).reshape(shape)
        return shapes

    def fill(self, **values: np.ndarray) -> None:
        """Writes the inputs of the next run, on the host; those that the engine does not have are left out."""
        for name in self._inputs:
            self._views[name][...] = values[name]

    def upload(self) -> None:
        """Puts the copy of all inputs on the stream."""
        self._device.upload(self._block, self._staged[: self._used])

    def download(self) -> None:
        """Puts the copy of the logits on the stream."""
        self._device.download(self._answer, self.addresses[LOGITS])

    def logits(self) -> np.ndarray:
        """float32 [batch, num_logits, V] of the run that has ended; the caller's own."""
        return self._answer.copy()

    def cache(self, name: str, batch: int) -> np.ndarray:
        """The first rows of a cache as float32; waits for the device."""
        cache = next(pair for pair in self._sidecar.caches if pair.past == name)
        stored = np.empty((batch, *cache.shape[1:]), storage(cache.dtype))
        self._device.download(stored, self.addresses[name])
        self._device.synchronize()
        return as_float32(stored, cache.dtype)

    def _place_inputs(self, sizes: dict[str, int]) -> tuple[dict[str, int], int]:
        """Offset of each input in the block, and the block's bytes."""
        offsets, end = {}, 0
        for name in self._inputs:
            offsets[name] = end
            end += -(-self._size(name, sizes) // ALIGNMENT) * ALIGNMENT
        return offsets, end

    def _size(self, name: str, sizes: dict[str, int]) -> int:
        tensor = self._tensors[name]
        return tensor.itemsize * math.prod(_shape(tensor, sizes))


def _shape(tensor: Tensor, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)


def _bytes(cache: CachePair) -> int:
    return storage(cache.dtype).itemsize * math.prod(cache.shape)
