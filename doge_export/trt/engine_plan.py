"""What an engine will be, decided before TensorRT is asked: graph, types, profiles, buffers, memory, trtexec's line."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import onnx_ir as ir

from doge_export.targets.half.extremes import Extreme, by_operator
from doge_export.targets.tensorrt import Attention, Precision

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape of an input in an optimisation profile."""

PREFILL, DECODE = "prefill", "decode"
"""Profiles 0 and 1."""

PLUGIN = "libdoge_trt_plugin.so"
MOST_ELEMENTS = 2**31 - 1
"""Of a tensor."""


@dataclasses.dataclass(frozen=True)
class Binding:
    """An input or output of the engine. `shape` holds sizes and the names of dynamic axes."""

    name: str
    dtype: ir.DataType
    shape: tuple[int | str, ...]

    def at(self, sizes: dict[str, int]) -> Shape:
        """Its shape where the dynamic axes have these sizes."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)

    def bytes(self, sizes: dict[str, int]) -> int:
        """Of the buffer where the dynamic axes have these sizes."""
        return int(math.prod(self.at(sizes)) * self.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class PlannedCache:
    """A cache that is written in place: `past` and `present` are bound to one buffer of `shape`, zeros at first.

    `shape` is that of the largest batch; a smaller one uses the buffer's first rows.
    """

    past: str
    present: str
    dtype: ir.DataType
    shape: Shape

    @property
    def bytes(self) -> int:
        """Of its one buffer."""
        return int(math.prod(self.shape) * self.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device.

    Attributes:
        weights: of the graph's initializers.
        caches: of all `EnginePlan.caches`.
        io: of every other input and output, at the largest shapes.
        workspace: the largest scratch that a plugin node asks for, since TensorRT lets nodes share it; 0 without
            such nodes, None where no library with kernels is built that could tell, or more tokens than they count.

    What lies between the layers is TensorRT's to decide; its engine tells (`device_memory_size_v2`, which includes
    `workspace`).
    """

    weights: int
    caches: int
    io: int
    workspace: int | None

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return self.weights + self.caches + self.io + (self.workspace or 0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why no engine may be built: TensorRT would refuse or misread the graph, or float16 not hold its values.

    `rule` is the rule's name, `where` a node or value.
    """

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the model came from, as a manifest would tell it.

    `folder` holds `companions`: config.json and the tokenizer's files. `chunkable_length`, `cdmoe_routing`,
    `architecture`, `source`, `assumptions` are the manifest's entries of these names.
    """

    folder: Path
    companions: tuple[Path, ...]
    source: dict[str, Any]
    architecture: dict[str, Any]
    assumptions: dict[str, Any]
    cdmoe_routing: str | None
    chunkable_length: int


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """An engine to be built.

    The graph's inputs, all int32 but for the caches:

        input_ids      [batch, sequence]    rows shorter than `sequence` are padded on the right, with any valid id
        past_lengths   [batch]              tokens that each row's caches hold
        logits_tokens  [batch, num_logits]  which of the new tokens' logits are wanted, by place: the last real one's is
                                            its row's number of new tokens - 1
        position_ids   [batch, sequence]    only where RoPE is scaled by the length (`needs_positions`); place in the
                                            text, for padding that of the row's last real token
        past_key_values.{i}.key, .value     [batch, Hkv, capacity, D]
        past_key_values.{i}.score           float32 [batch, Hs, capacity], native attention: [batch, Hs, capacity, 1]

    and its outputs:

        logits                              float32 [batch, num_logits, V]
        best_logits, best_tokens            float32 and int32 [batch, num_logits, candidates]: the highest logits, where
                                            `candidates` is not 0
        present.{i}.key, .value, .score     as the past ones, and the same memory

    Attributes:
        graph: lowered, without functions, typed.
        inputs, outputs: all of the graph, caches included, by name.
        profiles: PREFILL and DECODE, in the engine's order: input name -> (min, opt, max) for every input. PREFILL's
            longest `sequence` may be less than the capacity: longer prompts are then read in pieces.
        plugin_nodes: nodes of domain `doge`; as many layers of kind PLUGIN_V3 must come out of the parser.
        capacity: of a cache row; max_length.
        findings: of the lint, and overflows seen on text; an engine is only built where there is none.
        types: how many nodes of each operator give which type.
        extremes: the largest magnitude seen of each value that float16 is to hold; empty where nobody looked.
    """

    graph: ir.Model
    precision: Precision
    attention: Attention
    tensorrt_version: tuple[int, int]
    max_batch: int
    max_length: int
    max_logits: int
    inputs: dict[str, Binding]
    outputs: dict[str, Binding]
    caches: tuple[PlannedCache, ...]
    profiles: dict[str, dict[str, Range]]
    plugin_nodes: int
    memory: DeviceMemory
    findings: tuple[Finding, ...]
    types: dict[str, dict[str, int]]
    provenance: Provenance
    extremes: tuple[Extreme, ...] = ()

    @property
    def capacity(self) -> int:
        """Tokens that a row of a cache holds."""
        return self.max_length

    @property
    def typing(self) -> dict[str, Any]:
        """ "operators": as `types`; "largest": of `extremes`, the largest that each operator gave."""
        return {"operators": self.types, "largest": by_operator(self.extremes)}

    @property
    def candidates(self) -> int:
        """How many of the best next tokens a run gives beside all logits."""
        best = self.outputs.get("best_tokens")
        return int(best.shape[2]) if best else 0

    @property
    def needs_positions(self) -> bool:
        """Whether position_ids is an input."""
        return "position_ids" in self.inputs

    @property
    def buffers(self) -> dict[str, Binding]:
        """Every input and output that is no cache: each needs a buffer of its own, see `largest_sizes`."""
        cached = {name for cache in self.caches for name in (cache.past, cache.present)}
        return {name: binding for name, binding in (self.inputs | self.outputs).items() if name not in cached}

    def trtexec(self, onnx: str = "model.onnx", engine: str = "model.engine", plugin: str = PLUGIN) -> str:
        """The command of TensorRT's own that builds the same engine, in one line. Arguments: paths of files."""
        words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
        if self.tensorrt_version < (11, 0):
            words.append("--stronglyTyped")  # of TensorRT 11 every network is
        if self.plugin_nodes:
            words.append(f"--dynamicPlugins={plugin}")
        for number, profile in enumerate(self.profiles.values()):
            words.append(f"--profile={number}")
            for place, option in enumerate(("minShapes", "optShapes", "maxShapes")):
                shapes = (f"{name}:{'x'.join(map(str, ranges[place]))}" for name, ranges in profile.items())
                words.append(f"--{option}={','.join(shapes)}")
        return shlex.join(words)

    @property
    def largest_sizes(self) -> dict[str, int]:
        """The dynamic axes at their largest; `Binding.bytes` takes them."""
        sequence = self.profiles[PREFILL]["input_ids"][2][1]
        return {"batch": self.max_batch, "sequence": sequence, "num_logits": self.max_logits}
