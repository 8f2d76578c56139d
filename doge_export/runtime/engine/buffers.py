"""The buffers that an engine is bound to: caches in place, other inputs, the best tokens, all logits.

All are allocated once, for the largest batch; a smaller batch uses the first bytes of each buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from doge_export.runtime.engine.device import Device
from doge_export.runtime.engine.sidecar import CachePair, Sidecar, as_float32, storage
from doge_export.runtime.engine.staging import StagedTensors

LOGITS = "logits"
BEST = ("best_tokens", "best_logits")
"""Outputs that every run copies to the host, if the engine has them; logits are copied on demand."""

COPIES = 2
"""Host copies of inputs and best tokens: one for a step, one for the step that is looked ahead to meanwhile."""


class Buffers:
    """Device memory of an engine's inputs and outputs, and host memory of those that are copied.

    Attributes:
        addresses: name of input or output -> address on the device.
    """

    def __init__(self, device: Device, sidecar: Sidecar) -> None:
        self._device, self._sidecar = device, sidecar
        caches: dict[str, int] = {}
        for cache in sidecar.caches:
            caches[cache.past] = caches[cache.present] = device.allocate(_bytes(cache))
        largest = {"batch": sidecar.max_batch, "sequence": self.longest, "num_logits": sidecar.max_logits}
        inputs = {name: tensor for name, tensor in sidecar.inputs.items() if name not in caches}
        best = {name: sidecar.outputs[name] for name in BEST if name in sidecar.outputs}
        self._inputs = StagedTensors(device, inputs, largest, copies=COPIES)
        self._best = StagedTensors(device, best, largest, copies=COPIES)
        self._logits = StagedTensors(device, {LOGITS: sidecar.outputs[LOGITS]}, largest)
        self._blocks = (self._inputs, self._best, self._logits)
        self.addresses = caches
        self._name_addresses()

    @property
    def longest(self) -> int:
        """The most new tokens of a row in one run."""
        longest: int = self._sidecar.profiles["prefill"]["input_ids"][2][1]
        return longest

    def lay_out(self, batch: int, sequence: int, num_logits: int) -> dict[str, tuple[int, ...]]:
        """Place everything for a run of these sizes; return the shapes of the inputs by name."""
        for block in self._blocks:
            block.lay_out({"batch": batch, "sequence": sequence, "num_logits": num_logits})
        self._name_addresses()
        shapes = {name: view.shape for name, view in self._inputs.views.items()}
        return shapes | {cache.past: (batch, *cache.shape[1:]) for cache in self._sidecar.caches}

    def fill(self, **values: np.ndarray) -> None:
        """Write the inputs of the next run on the host; values that are no inputs of the engine are ignored."""
        for name, view in self._inputs.views.items():
            assert view.shape == values[name].shape, f"{name} was laid out as {view.shape}"
            view[...] = values[name]

    def use(self, copy: int) -> None:
        """Let everything that follows read and write this host copy, 0 or 1."""
        self._inputs.copy = self._best.copy = copy

    def upload(self) -> None:
        """Enqueue the copy of all inputs."""
        self._inputs.upload()

    def follow(self) -> None:
        """Enqueue the copy, on the device, of each row's best token of the run before into input_ids [B, 1]."""
        tokens = self._best.views[BEST[0]]
        rows, _, count = tokens.shape
        addresses = self._best.addresses[BEST[0]], self._inputs.addresses["input_ids"]
        self._device.copy_column(addresses[1], addresses[0], count * tokens.itemsize, tokens.itemsize, rows)

    def download(self) -> None:
        """Enqueue the copy of the best tokens, if the engine gives any."""
        self._best.download()

    def best(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the best tokens of the run that has ended; None if the engine gives none.

        Returns:
            ids int32 and logits float32, both [batch, num_logits, candidates]; the next run overwrites them.
        """
        views = self._best.views
        return (views[BEST[0]], views[BEST[1]]) if views else None

    def logits(self) -> np.ndarray:
        """Return a copy of the last run's logits, float32 [batch, num_logits, V]; waits for the device."""
        self._logits.download()
        self._device.synchronize()
        return self._logits.views[LOGITS].copy()

    def cache(self, name: str, batch: int) -> np.ndarray:
        """Return the first `batch` rows of a cache as float32; waits for the device."""
        cache = next(pair for pair in self._sidecar.caches if pair.past == name)
        stored = np.empty((batch, *cache.shape[1:]), storage(cache.dtype))
        self._device.download(stored, self.addresses[name])
        self._device.synchronize()
        return as_float32(stored, cache.dtype)

    def caches(self, batch: int) -> dict[str, np.ndarray]:
        """Return copies of the first `batch` rows of all caches, as they are stored, by name of input."""
        copies = {pair.past: np.empty((batch, *pair.shape[1:]), storage(pair.dtype)) for pair in self._sidecar.caches}
        for name, copy in copies.items():
            self._device.download(copy, self.addresses[name])
        self._device.synchronize()
        return copies

    def write_caches(self, copies: Mapping[str, np.ndarray]) -> None:
        """Set the first rows of all caches to what `caches` returned."""
        for name, copy in copies.items():
            self._device.upload(self.addresses[name], np.ascontiguousarray(copy))
        self._device.synchronize()

    def _name_addresses(self) -> None:
        for block in self._blocks:
            self.addresses |= block.addresses


def _bytes(cache: CachePair) -> int:
    return storage(cache.dtype).itemsize * math.prod(cache.shape)
