"""An engine's graph run by onnxruntime as the runtime runs the engine: caches in place, rows padded on the right."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from compositions import traced_once
from doge_runs import module_logits
from one_thread import open_session
from sixteen_bits import SIXTEEN_BITS, emulated

from doge_export.checkpoint import open_checkpoint
from doge_export.graph import trace
from doge_export.model import DogeForExport
from doge_export.package.manifest import SourceEntry
from doge_export.package.onnx_file import write_onnx
from doge_export.trt.engine_options import EngineOptions
from doge_export.trt.engine_plan import EnginePlan, Provenance
from doge_export.trt.on_cpu import runnable
from doge_export.trt.plan_engine import plan_traced
from doge_export.trt.traced import Traced

NOWHERE = Provenance(Path(), (), SourceEntry("random", None), {}, {}, None, 0)


@functools.cache
def random_traced(name: str, max_length: int) -> tuple[DogeForExport, Traced]:
    """A tiny module of a composition, traced once."""
    module, graph = traced_once(name, max_length=max_length)
    return module, Traced(graph, max_length, NOWHERE)


@contextlib.contextmanager
def scores_raised(module: DogeForExport, factor: float) -> Iterator[None]:
    """For a while scores are exponentials of `factor` times what they were; the traced graph shares the parameters."""
    parameters = [parameter for name, parameter in module.named_parameters() if name.endswith(".A")]
    before = [parameter.clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter *= factor
        try:
            yield
        finally:
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)


@functools.cache
def stored_traced(folder: Path, max_length: int) -> tuple[DogeForExport, Traced]:
    """A checkpoint, traced once."""
    checkpoint = open_checkpoint(folder)
    module = DogeForExport.from_tensors(checkpoint.architecture, checkpoint.tensors, max_length=max_length)
    provenance = dataclasses.replace(NOWHERE, architecture=checkpoint.architecture.to_dict())
    return module, Traced(trace(module), max_length, provenance)


def plan_of(traced: Traced, **options: Any) -> EnginePlan:
    """Lowering changes its graph, so a copy of that; `clone` would share the types of values."""
    copy = ir.serde.deserialize_model(ir.serde.serialize_model(traced.graph))
    return plan_traced(dataclasses.replace(traced, graph=copy), EngineOptions(**({"calibrate": False} | options)))


def largest_sizes(plan: EnginePlan) -> dict[str, int]:
    """The dynamic axes at their largest."""
    sequence = plan.profiles["prefill"]["input_ids"][2][1]
    return {"batch": plan.max_batch, "sequence": sequence, "num_logits": plan.max_logits}


class EngineOnCpu:
    """A growing batch of rows, each as long as it is.

    is_rounded: execute it in float32, every value of 16 bits rounded to them; else as onnxruntime's CPU does.
    """

    def __init__(self, plan: EnginePlan, is_rounded: bool = False) -> None:
        self.plan, self._is_rounded = plan, is_rounded
        graph = emulated(runnable(plan.graph)) if is_rounded else runnable(plan.graph)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            write_onnx(graph, file)
            self._session = open_session(file)
        self._names = [value.name for value in self._session.get_outputs()]
        self.reset(1)

    def reset(self, batch: int, fill: float = 0.0) -> None:
        """Forget everything; slots that nothing was written to hold `fill`."""
        self.lengths = np.zeros(batch, np.int32)
        self.caches = {
            cache.past: np.full((batch, *cache.shape[1:]), fill, self._stored(cache.dtype))
            for cache in self.plan.caches
        }

    def _stored(self, dtype: ir.DataType) -> np.dtype:
        """The type in which a cache of a type is kept here."""
        is_wide = self._is_rounded and dtype in SIXTEEN_BITS
        return np.dtype(np.float32) if is_wide else dtype.numpy()

    def read(self, rows: Sequence[Sequence[int]], padding: int = 0, width: int = 0) -> list[np.ndarray]:
        """Append ids to each row, none to some if need be; gives the logits [new, V] of each row's."""
        new = np.array([len(row) for row in rows])
        size = max(new.max(), width, 1)
        ids = np.full((len(rows), size), padding, np.int32)
        positions = np.minimum(np.arange(size), np.maximum(new - 1, 0)[:, None]) + self.lengths[:, None]
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
        feeds = {
            "input_ids": ids,
            "past_lengths": self.lengths,
            "new_lengths": new.astype(np.int32),
            "logits_tokens": np.tile(np.arange(size, dtype=np.int32), (len(rows), 1)),
            "position_ids": positions.astype(np.int32),
        }
        feeds = {name: value for name, value in feeds.items() if name in self.plan.inputs} | self.caches
        outputs = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        self.outputs = outputs
        self.caches = {cache.past: outputs[cache.present] for cache in self.plan.caches}
        self.lengths = (self.lengths + new).astype(np.int32)
        return [outputs["logits"][number, :count] for number, count in enumerate(new)]

    def logits(self, ids: np.ndarray, chunks: Sequence[int] | None = None) -> np.ndarray:
        """[S, V] of one row [S], read in pieces into an empty cache."""
        self.reset(1)
        parts, start = [], 0
        for size in chunks or [len(ids)]:
            parts += self.read([ids[start : start + size].tolist()])
            start += size
        return np.concatenate(parts)


def reference(module: DogeForExport, ids: np.ndarray, chunks: Sequence[int] | None = None) -> np.ndarray:
    """[S, V] of one row [S], in float32 PyTorch."""
    return np.asarray(module_logits(module, ids[None], chunks=chunks))[0]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Mean and largest KL of the tokens in nats, and the share of tokens whose best is the same."""

    mean_kl: float
    max_kl: float
    argmax: float
    tokens: int


def agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Of logits [N, V]; what is not finite is no agreement."""
    assert np.isfinite(found).all()
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (expected, found))
    kl = (p.exp() * (p - q)).sum(-1)
    same = expected.argmax(-1) == found.argmax(-1)
    return Agreement(float(kl.mean()), float(kl.max()), float(same.mean()), len(expected))


def dtype_of(graph: ir.Model, name: str) -> ir.DataType | None:
    """Of an input or output."""
    return next(value.dtype for value in [*graph.graph.inputs, *graph.graph.outputs] if value.name == name)
