"""The plan of an engine: graph, bindings, profiles, memory and findings, known before TensorRT is asked."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from doge_export.checkpoint.architecture import CdmoeRouting
from doge_export.package.manifest import Cache, SourceEntry
from doge_export.plugin.build import TENSORRT_PLUGIN
from doge_export.runtime.engine.kinds import TENSORRT, KindName
from doge_export.targets.half.extremes import Extreme, by_operator
from doge_export.targets.tensorrt import Attention, EnginePrecision

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""The min, opt and max shape of an input in an optimisation profile."""

PREFILL, DECODE = "prefill", "decode"
"""Names of the optimisation profiles 0 and 1."""


@dataclasses.dataclass(frozen=True)
class Binding:
    """An input or output of the engine; `shape` holds sizes, and names of dynamic axes."""

    name: str
    dtype: ir.DataType
    shape: tuple[int | str, ...]

    def at(self, sizes: dict[str, int]) -> Shape:
        """Return the shape for these sizes of the dynamic axes."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)

    def bytes(self, sizes: dict[str, int]) -> int:
        """Return the bytes of the buffer for these sizes of the dynamic axes."""
        return int(math.prod(self.at(sizes)) * self.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class PlannedCache:
    """A cache that is written in place: `past` and `present` are bound to one buffer, which starts as zeros.

    Attributes:
        past: name of the input.
        present: name of the output.
        dtype: of the buffer.
        shape: of the buffer at the largest batch; a smaller batch uses the first rows.
    """

    past: str
    present: str
    dtype: ir.DataType
    shape: Shape

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return int(math.prod(self.shape) * self.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """Bytes of device memory that an engine needs, as far as the plan knows them.

    TensorRT decides on the memory for values between the layers; only the built engine reports it
    (`device_memory_size_v2`, which includes `workspace`).

    Attributes:
        weights: all initializers of the graph.
        caches: all `EnginePlan.caches`.
        io: all other inputs and outputs, at their largest shapes.
        workspace: the largest workspace that a plugin node asks for, since TensorRT lets nodes share it. 0 without
            such nodes; None if no library with kernels is built that could tell, or if the tokens of one run are more
            than kernels count.
    """

    weights: int
    caches: int
    io: int
    workspace: int | None

    @property
    def total(self) -> int:
        """Sum of all that is known."""
        return self.weights + self.caches + self.io + (self.workspace or 0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A reason not to build an engine: TensorRT would refuse or misread the graph, or float16 would overflow.

    Attributes:
        rule: name of the lint's rule, or "overflow".
        where: the node or value.
        message: what was seen and what is expected.
    """

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The source of the model, as the manifest of the engine's folder records it.

    Attributes:
        folder: holds the companions.
        companions: config.json and the tokenizer's files.
        made: name -> content of further files, which were made from others.
        source, architecture, assumptions, cdmoe_routing, chunkable_length: the manifest's entries of these names.
    """

    folder: Path
    companions: tuple[Path, ...]
    source: SourceEntry
    architecture: Mapping[str, Any]
    assumptions: Mapping[str, str]
    cdmoe_routing: CdmoeRouting | None
    chunkable_length: int
    made: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """An engine to be built.

    Inputs of the graph, int32 except for the caches:

        input_ids      [batch, sequence]    rows shorter than `sequence` are padded on the right, with any valid id
        past_lengths   [batch]              number of tokens that each row's caches hold
        logits_tokens  [batch, num_logits]  indices along `sequence` of the new tokens whose logits are wanted
        new_lengths    [batch]              only with bounded caches: number of real tokens of each row
        position_ids   [batch, sequence]    only if RoPE is scaled by the length: position in the text; padding repeats
                                            the position of the row's last real token
        past_key_values.{i}.key, .value     [batch, Hkv, capacity, D]
        past_key_values.{i}.score           float32 [batch, Hs, capacity], native attention: [batch, Hs, capacity, 1]
        past_key_values.{i}.slots           int32 [batch, Hkv, capacity]: with bounded caches, places in the text

    Outputs of the graph:

        logits                              float32 [batch, num_logits, V]
        best_logits, best_tokens            float32 and int32 [batch, num_logits, candidates]: the highest logits and
                                            their tokens; absent if no candidates are asked for
        present.{i}.key, .value, ...        like the past ones, in the same memory

    Attributes:
        graph: lowered, without functions, typed.
        precision, attention, builder, tensorrt_version, max_batch: as in `EngineOptions`.
        max_length: tokens of a row; unless caches are bounded, also their `capacity`.
        max_logits: as in `EngineOptions`, at most `max_length`.
        inputs, outputs: all of the graph, caches included, by name.
        caches: the inputs and outputs that share a buffer.
        profiles: PREFILL and DECODE, in the engine's order: input name -> (min, opt, max) for every input. The longest
            `sequence` of PREFILL may be less than the capacity: longer prompts are then read in pieces. Both may
            allow more rows than `max_batch`, for which there are no buffers.
        plugin_nodes: number of nodes of domain `doge`; the parser must make as many layers of type PLUGIN_V3.
        memory: bytes on the device.
        findings: of the lint, and overflows seen on text; an engine is built only if there are none.
        types: operator -> type -> number of nodes that give it.
        provenance: source of the model.
        extremes: the largest magnitude seen of each value that float16 is to hold; empty without calibration.
        cache: keys that the caches hold; bounded ones have a `capacity` of keep_window_size.
    """

    graph: ir.Model
    precision: EnginePrecision
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
    builder: KindName = TENSORRT.name
    cache: Cache = "unbounded"

    @property
    def typing(self) -> dict[str, Any]:
        """The manifest's entry: "operators" are `types`, "largest" the largest of `extremes` by operator."""
        return {"operators": self.types, "largest": by_operator(self.extremes)}

    def trtexec(self, onnx: str = "model.onnx", engine: str = "model.engine", plugin: str = TENSORRT_PLUGIN) -> str:
        """Return the trtexec command that builds the same engine from these files, in one line."""
        words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
        if self.tensorrt_version < (11, 0):
            words.append("--stronglyTyped")  # implied from TensorRT 11 on
        if self.plugin_nodes:
            words.append(f"--dynamicPlugins={plugin}")
        for number, profile in enumerate(self.profiles.values()):
            words.append(f"--profile={number}")
            for place, option in enumerate(("minShapes", "optShapes", "maxShapes")):
                shapes = (f"{name}:{'x'.join(map(str, ranges[place]))}" for name, ranges in profile.items())
                words.append(f"--{option}={','.join(shapes)}")
        return shlex.join(words)
