"""What is said of an engine: its plan in JSON, the manifest of its folder, the sidecar beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

from doge_export.package.manifest import Manifest
from doge_export.plugin.tensorrt_versions import dotted
from doge_export.runtime.engine.kinds import RTX
from doge_export.runtime.engine.sidecar import ENGINE, ONNX, CachePair, EngineTensor, Sidecar
from doge_export.trt.engine_plan import EnginePlan
from doge_export.version import __version__

_TYPES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT32": "int32"}
"""Names in the sidecar for the types of an engine's inputs and outputs."""


def plan_facts(planned: EnginePlan) -> dict[str, Any]:
    """Return a plan in plain JSON values, for `--dry-run`; TensorRT for RTX has no trtexec and one form of graph."""
    memory, is_rtx = planned.memory, planned.builder == RTX.name

    def ports(bindings: Any) -> dict[str, str]:
        return {name: f"{port.dtype.name} [{', '.join(map(str, port.shape))}]" for name, port in bindings.items()}

    return {
        "model": planned.provenance.source.model,
        "precision": planned.precision,
        "attention": planned.attention,
        "builder": planned.builder,
        "tensorrt": None if is_rtx else dotted(planned.tensorrt_version),
        "max_batch": planned.max_batch,
        "max_length": planned.max_length,
        "cache": planned.cache,
        "max_logits": planned.max_logits,
        "plugin_nodes": planned.plugin_nodes,
        "memory": dataclasses.asdict(memory),
        "inputs": ports(planned.inputs),
        "outputs": ports(planned.outputs),
        "profiles": {
            name: {tensor: [list(shape) for shape in shapes] for tensor, shapes in profile.items()}
            for name, profile in planned.profiles.items()
        },
        "typing": planned.typing,
        "findings": [str(finding) for finding in planned.findings],
        "trtexec": None if is_rtx else planned.trtexec(ONNX, ENGINE),
    }


def manifest_of(planned: EnginePlan, skipped: str, *, tf32: bool = False) -> Manifest:
    """Return the manifest of an engine's folder before validation.

    Args:
        planned: the engine.
        skipped: why it is not validated.
        tf32: float32 products take TF32 factors; an fp32 engine is then judged by the tolerance of that type.
    """
    from doge_export.package.onnx_file import describe_graph
    from doge_export.package.provenance import versions

    provenance = planned.provenance
    precision = "tf32" if tf32 and planned.precision == "fp32" else planned.precision
    entry = dataclasses.replace(describe_graph(planned.graph, precision, "engine"), typing=planned.typing)
    return Manifest(
        doge_export=__version__,
        source=provenance.source,
        architecture=provenance.architecture,
        task="text-generation",
        assumptions=provenance.assumptions,
        target="tensorrt",
        max_length=planned.max_length,
        chunkable_length=provenance.chunkable_length,
        cdmoe_routing=provenance.cdmoe_routing,
        graphs={ENGINE: entry},
        versions=versions(),
        validation={"skipped": skipped},
        cache=planned.cache,
    )


def sidecar_of(plan: EnginePlan, **built: Any) -> Sidecar:
    """Return the sidecar of an engine of this plan; `built` are the fields that are known only after the build."""

    def tensor(binding: Any) -> EngineTensor:
        return EngineTensor(_TYPES[binding.dtype.name], tuple(binding.shape))

    return Sidecar(
        precision=plan.precision,
        attention=plan.attention,
        max_batch=plan.max_batch,
        max_length=plan.max_length,
        max_logits=plan.max_logits,
        inputs={name: tensor(binding) for name, binding in plan.inputs.items()},
        outputs={name: tensor(binding) for name, binding in plan.outputs.items()},
        profiles={name: dict(shapes) for name, shapes in plan.profiles.items()},
        caches=tuple(CachePair(c.past, c.present, _TYPES[c.dtype.name], tuple(c.shape)) for c in plan.caches),
        **built,
    )
