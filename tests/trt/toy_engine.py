"""An engine small enough to be known by heart: logits of a token are a fixed function of all ids up to it.

Its ids go through a cache that is written in place: a wrong length, address, shape or order shows in the logits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from doge_export.package.manifest import SourceEntry, write_manifest
from doge_export.trt.engine_plan import Binding, DeviceMemory, EnginePlan, PlannedCache, Provenance

VOCAB, LONGEST, MAX_LENGTH, MAX_BATCH, MAX_LOGITS, CANDIDATES = 11, 8, 32, 3, 4, 5
PAST, PRESENT = "past_key_values.0.key", "present.0.key"
CACHES = {PAST: PRESENT, "past_key_values.0.value": "present.0.value"}
"""Keys are ids, values twice as much."""
_TYPES = {ir.DataType.INT32: TensorProto.INT32, ir.DataType.FLOAT: TensorProto.FLOAT}

INPUTS = {
    "input_ids": ("batch", "sequence"),
    "past_lengths": ("batch",),
    "logits_tokens": ("batch", "num_logits"),
    "position_ids": ("batch", "sequence"),
}


def truth(ids: list[int]) -> np.ndarray:
    """float32 [V]: the logits behind these tokens."""
    total = sum((place + 1) * (token + 1) for place, token in enumerate(ids))
    return np.cos(np.arange(VOCAB, dtype=np.float32) * total).astype(np.float32)


def expected(rows: list[list[int]], keep: int) -> np.ndarray:
    """[B, keep, V] of the last tokens of rows that are as long."""
    return np.stack([[truth(row[: len(row) - keep + 1 + k]) for k in range(keep)] for row in rows])


def execute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine computes."""
    ids, past, tokens, positions = (feeds[name] for name in INPUTS)
    present, values = (feeds[name].copy() for name in CACHES)
    batch, new = ids.shape
    logits = np.empty((batch, tokens.shape[1], VOCAB), np.float32)
    for row in range(batch):
        length = int(past[row])
        assert length + new <= MAX_LENGTH
        present[row, 0, length : length + new, 0] = ids[row]
        values[row, 0, length : length + new, 0] = 2 * ids[row]
        for k, token in enumerate(tokens[row]):
            end = length + int(token) + 1
            assert positions[row, token] == end - 1
            logits[row, k] = truth(present[row, 0, :end, 0].astype(int).tolist())
    tokens = np.argsort(-logits, axis=-1)[..., :CANDIDATES]
    best = {"best_tokens": tokens.astype(np.int32), "best_logits": np.take_along_axis(logits, tokens, -1)}
    return {"logits": logits, **best, **dict(zip(CACHES.values(), (present, values), strict=True))}


def _binding(name: str, shape: tuple[int | str, ...], dtype: ir.DataType = ir.DataType.INT32) -> Binding:
    return Binding(name, dtype, shape)


def toy_plan(
    folder: Path, plugin_nodes: int = 2, max_batch: int = MAX_BATCH, candidates: int = CANDIDATES
) -> EnginePlan:
    """A plan whose graph is a chain of plugin nodes: nobody computes it, the recorder calls `execute`."""
    real = ir.DataType.FLOAT
    cache_shape: tuple[int | str, ...] = ("batch", 1, MAX_LENGTH, 1)
    inputs = {name: _binding(name, shape) for name, shape in INPUTS.items()}
    inputs |= {name: _binding(name, cache_shape, real) for name in CACHES}
    outputs = {"logits": _binding("logits", ("batch", "num_logits", VOCAB), real)}
    if candidates:
        shape = "batch", "num_logits", candidates
        outputs |= {"best_logits": _binding("best_logits", shape, real), "best_tokens": _binding("best_tokens", shape)}
    outputs |= {name: _binding(name, cache_shape, real) for name in CACHES.values()}

    def ports(bindings: dict[str, Binding]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(binding.name, _TYPES[binding.dtype], list(binding.shape))
            for binding in bindings.values()
        ]

    names = [f"x{index}" for index in range(plugin_nodes)]
    nodes = [helper.make_node("DynamicMaskAttention", ["input_ids"], [name], domain="doge") for name in names]
    answers = [name for name in outputs if name not in CACHES.values()]
    nodes += [helper.make_node("Identity", ["x0" if names else "input_ids"], [name]) for name in answers]
    nodes += [helper.make_node("Identity", [past], [present]) for past, present in CACHES.items()]
    graph = helper.make_graph(nodes, "toy", ports(inputs), ports(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("doge", 1)])
    model.ir_version = 10

    def profile(longest: int, logits: int) -> dict[str, tuple[tuple[int, ...], ...]]:
        def at(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
            return {n: tuple(sizes.get(s, s) if isinstance(s, str) else s for s in b.shape) for n, b in inputs.items()}

        low = at({"batch": 1, "sequence": 1, "num_logits": 1})
        high = at({"batch": max_batch, "sequence": longest, "num_logits": logits})
        return {name: (low[name], high[name], high[name]) for name in inputs}

    (folder / "config.json").write_text("{}")
    provenance = Provenance(folder, (folder / "config.json",), SourceEntry("toy", None), {}, {}, None, MAX_LENGTH)
    return EnginePlan(
        graph=ir.serde.deserialize_model(model),
        precision="fp32",
        attention="plugin" if plugin_nodes else "native",
        tensorrt_version=(11, 4),
        max_batch=max_batch,
        max_length=MAX_LENGTH,
        max_logits=MAX_LOGITS,
        inputs=inputs,
        outputs=outputs,
        caches=tuple(PlannedCache(*names, real, (max_batch, 1, MAX_LENGTH, 1)) for names in CACHES.items()),
        profiles={"prefill": profile(LONGEST, MAX_LOGITS), "decode": profile(1, 1)},  # type: ignore[dict-item]
        plugin_nodes=plugin_nodes,
        memory=DeviceMemory(**dict.fromkeys((field.name for field in dataclasses.fields(DeviceMemory)), 0)),
        findings=(),
        types={},
        provenance=provenance,
    )


def finish(folder: Path, plan: EnginePlan) -> None:
    """The manifest of a toy engine's folder."""
    from doge_export.trt.describe import manifest_of

    write_manifest(folder, manifest_of(plan, "a toy"))
