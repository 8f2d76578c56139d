"""The router's projection read by CDMoE as it is: its two halves lie in memory where a copy of each would be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.graph.schemas import CDMOE, DOMAIN, FUSED_CDMOE
from doge_export.targets.contract import GraphPass, check_signature, extent, node_input
from doge_export.targets.lowering import Lowering
from doge_export.targets.passes.patterns import computed_by

FLOAT = ir.DataType.FLOAT


@dataclasses.dataclass(frozen=True)
class _Router:
    """A router's projection [B, S, 2 * heads * K]; mixed, it has two halves as a whole, and not for each token."""

    projection: ir.Value
    heads: int
    mixes_tokens: bool


class FuseRouting(GraphPass):
    """CDMoE of two slices of a projection -> FusedCDMoE of the projection.

    1. x, y = Reshape(projection, [2, -1])[0 : 1], [1 : ]: the routing of the reference, which mixes tokens.
    2. x, y = projection[..., : n], projection[..., n : ]: per token.

    Nodes whose scores are matched with keys or sorted stay as they are.
    """

    def requires(self, model: ir.Model) -> None:
        """Require nodes with the signature of their operator."""
        super().requires(model)
        for node in _experts(model.graph):
            check_signature(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every CDMoE that has one of these forms."""
        graph, modified = model.graph, False
        for node in _experts(graph):
            router = _router(node)
            if router is not None:
                _fuse(graph, node, router)
                modified = True
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _experts(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.domain == DOMAIN and node.op_type == CDMOE.name]


def _router(node: ir.Node) -> _Router | None:
    """Return the projection whose halves are the scores of a node; None where they are anything else."""
    first, second = (_slice(node_input(node, place)) for place in (1, 2))
    if first is None or second is None or first.source is not second.source or first.axis != second.axis:
        return None
    heads, keys = extent(node.inputs[1], 2), extent(node.inputs[1], 3)
    half = 1 if first.axis == 0 else heads * keys
    if (first.start, first.end, second.start) != (0, half, half) or second.end < 2 * half:
        return None
    width, whole = 2 * heads * keys, computed_by(first.source, "Reshape")
    if first.axis == 0 and whole is not None and _stored(whole.inputs[1]) == [2, -1]:
        projection, mixes_tokens = node_input(whole, 0), True
    elif first.axis == 2:
        projection, mixes_tokens = first.source, False
    else:
        return None
    shape = projection.shape
    if shape is None or len(shape) != 3 or shape[2] != width:
        return None
    return _Router(projection, heads, mixes_tokens)


@dataclasses.dataclass(frozen=True)
class _Slice:
    source: ir.Value
    start: int
    end: int
    axis: int


def _slice(scores: ir.Value) -> _Slice | None:
    """Return the Slice along one axis that scores [B, S, R, K] are reshaped from."""
    reshape = computed_by(scores, "Reshape")
    node = computed_by(reshape.inputs[0], "Slice") if reshape is not None else None
    if node is None or len(node.inputs) != 4:
        return None
    bounds = [_stored(value) for value in node.inputs[1:]]
    if any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    (start,), (end,), (axis,) = (bound or [] for bound in bounds)
    return _Slice(node_input(node, 0), start, end, axis)


def _stored(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(x) for x in np.ravel(tensor.numpy())]


def _fuse(graph: ir.Graph, node: ir.Node, router: _Router) -> None:
    hidden, _, _, down, up = node.inputs
    attributes = {name: node.attributes[name].value for name in CDMOE.attributes}
    fused = ir.node(
        FUSED_CDMOE.name, [hidden, router.projection, down, up],
        attributes | {"num_routing_heads": router.heads, "mixes_tokens": int(router.mixes_tokens)},
        domain=DOMAIN, name=node.name,
    )  # fmt: skip
    old, new = node.outputs[0], fused.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [fused], [old], [new])


class UnfuseRouting(Lowering):
    """FusedCDMoE -> Split of the projection, then CDMoE: what the node means."""

    domain, op_types = DOMAIN, (FUSED_CDMOE.name,)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record the operators."""
        hidden, projection, down, up = (node_input(node, place) for place in range(4))
        heads, width = node.attributes["num_routing_heads"].as_int(), extent(projection, 2)
        if node.attributes["mixes_tokens"].as_int():
            rows = tape.op("Reshape", [projection, self.ints(2, -1)])
            parts = tape.op_multi_out("Split", [rows, self.ints(1, 1)], {"axis": 0}, num_outputs=2)
        else:
            parts = tape.op_multi_out(
                "Split", [projection, self.ints(width // 2, width // 2)], {"axis": -1}, num_outputs=2
            )
        tokens = tape.op("Shape", [hidden], {"start": 0, "end": 2})
        shape = tape.op("Concat", [tokens, self.ints(heads, width // 2 // heads)], {"axis": 0})
        scores = [tape.op("Reshape", [part, shape]) for part in parts]
        for value in (*parts, *scores):
            value.dtype = FLOAT
        attributes = {name: node.attributes[name].value for name in CDMOE.attributes}
        result = tape.op(CDMOE.name, [hidden, *scores, down, up], attributes, domain=DOMAIN)
        result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
        return [result]
