"""Device memory of an engine, from the graph and from the workspace that the kernels ask for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from doge_export.graph.schemas import CDMOE, DOMAIN, FUSED_CDMOE, FUSED_DYNAMIC_MASK_ATTENTION
from doge_export.plugin.build import KERNELS, cached_builds
from doge_export.plugin.params import AttentionParams, CdmoeParams, DogeDtype, FusedAttentionParams, Params
from doge_export.targets.contract import extent
from doge_export.trt.engine_plan import Binding, DeviceMemory, PlannedCache
from doge_export.trt.limits import MAX_ELEMENTS

_DTYPES = {
    ir.DataType.FLOAT: DogeDtype.FLOAT32,
    ir.DataType.FLOAT16: DogeDtype.FLOAT16,
    ir.DataType.BFLOAT16: DogeDtype.BFLOAT16,
}


def memory_of(
    model: ir.Model,
    bindings: dict[str, Binding],
    caches: Sequence[PlannedCache],
    sizes: dict[str, int],
    library: Path | None = None,
) -> DeviceMemory:
    """Count the device memory of a lowered graph.

    Args:
        model: lowered graph.
        bindings: its inputs and outputs.
        caches: the bindings that share a buffer.
        sizes: largest sizes of the dynamic axes.
        library: libdoge_kernels_c.so. None: the newest that `doge-export plugin build` keeps.
    """
    cached = {name for cache in caches for name in (cache.past, cache.present)}
    tensors = (value.const_value for value in model.graph.initializers.values())
    return DeviceMemory(
        weights=sum(tensor.nbytes for tensor in tensors if tensor is not None),
        caches=sum(cache.bytes for cache in caches),
        io=sum(binding.bytes(sizes) for name, binding in bindings.items() if name not in cached),
        workspace=_workspace(model, sizes, library),
    )


def _workspace(model: ir.Model, sizes: dict[str, int], library: Path | None) -> int | None:
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    if not nodes:
        return 0
    kernels = _kernels(library)
    # Kernels count tokens in 31 bits; the lint reports more.
    if kernels is None or sizes["batch"] * sizes["sequence"] > MAX_ELEMENTS:
        return None
    # The largest sizes need the largest workspace: AttentionWorkspacePlan and cdmoe_plan.h grow with every size.
    return max(_asked(kernels, node, sizes["batch"], sizes["sequence"]) for node in _distinct(nodes))


def _kernels(library: Path | None) -> ctypes.CDLL | None:
    """Return a library with kernels for any GPU; None if there is none.

    A library without kernels would report a workspace of 0, and one of another machine does not load: both are skipped.
    """
    candidates = (
        [library]
        if library is not None
        else [Path(build["folder"]) / KERNELS for build in cached_builds() if KERNELS in build["libraries"]]
    )
    for candidate in candidates:
        try:
            kernels = ctypes.CDLL(str(candidate))
            kernels.doge_architectures.restype = ctypes.c_char_p
        except (OSError, AttributeError):
            continue
        if kernels.doge_architectures():
            return kernels
    return None


def _asked(kernels: ctypes.CDLL, node: ir.Node, batch: int, new_tokens: int) -> int:
    """Return the bytes of workspace for `batch` rows of `new_tokens` tokens."""
    params: Params
    match node.op_type:
        case CDMOE.name | FUSED_CDMOE.name:
            function, params = kernels.doge_cdmoe_workspace_bytes, _cdmoe(node, batch * new_tokens)
        case FUSED_DYNAMIC_MASK_ATTENTION.name:
            function = kernels.doge_fused_attention_workspace_bytes
            params = FusedAttentionParams(attention=_attention(node, batch, new_tokens))
        case _:
            function, params = kernels.doge_attention_workspace_bytes, _attention(node, batch, new_tokens)
    function.restype = ctypes.c_size_t
    return int(function(ctypes.byref(params)))


def _attention(node: ir.Node, batch: int, new_tokens: int) -> AttentionParams:
    first = 6 if node.op_type == FUSED_DYNAMIC_MASK_ATTENTION.name else 4
    past_key, past_score = node.inputs[first], node.inputs[first + 2]
    assert past_key is not None and past_key.dtype is not None
    return AttentionParams(
        batch=batch,
        new_tokens=new_tokens,
        capacity=extent(past_key, 2),
        num_heads=node.attributes["num_heads"].as_int(),
        num_kv_heads=node.attributes["kv_num_heads"].as_int(),
        num_score_heads=extent(past_score, 1),
        head_size=extent(past_key, 3),
        keep_window_size=node.attributes["keep_window_size"].as_int(),
        scale=node.attributes["scale"].as_float(),
        dtype=_DTYPES[past_key.dtype],
    )


def _cdmoe(node: ir.Node, tokens: int) -> CdmoeParams:
    *_, scores, table, _ = node.inputs
    assert table is not None and table.const_value is not None
    num_experts, hidden_size = table.const_value.shape.numpy()
    if node.op_type == FUSED_CDMOE.name:
        heads = node.attributes["num_routing_heads"].as_int()
        keys = extent(scores, 2) // 2 // heads
    else:
        heads, keys = extent(scores, 2), extent(scores, 3)
    return CdmoeParams(
        tokens=tokens,
        hidden_size=hidden_size,
        num_experts=num_experts,
        num_keys=keys,
        num_routing_heads=heads,
        num_experts_per_tok=node.attributes["num_experts_per_tok"].as_int(),
        weights_inside=node.attributes["weights_inside"].as_int(),
        dtype=_DTYPES[table.const_value.dtype],
    )


def _distinct(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Return one node of each operator: all layers of a Doge are alike."""
    return [*{node.op_type: node for node in nodes}.values()]
