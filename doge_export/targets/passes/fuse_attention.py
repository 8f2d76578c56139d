"""One node for what stands between the projections and attention: norms by head, rotation, scores, contiguous values.

A step of decoding has one token, so each of the ten kernels that a builder makes of these is all launch and no work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN, DYNAMIC_MASK_ATTENTION, FUSED_DYNAMIC_MASK_ATTENTION
from doge_export.targets.contract import GraphPass, check_signature, extent, initializer, node_input, shape_of
from doge_export.targets.lowering import Lowering, constant, weight
from doge_export.targets.passes.patterns import Heads, computed_by, heads, linear

FLOAT = ir.DataType.FLOAT
STEP = 4
"""The plugin reads what scores are computed of in steps of so many numbers."""


@dataclasses.dataclass(frozen=True)
class _Scores:
    """exp(rate * softplus(source @ weight)), or without exp. `weight` [H, Hs] and `rate` [Hs] are stored."""

    source: ir.Value
    weight: ir.Value
    rate: ir.Value
    exponential: bool


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a fused node takes the place of: `weights` are those of query, key and value, [out, in]."""

    source: ir.Value
    weights: tuple[ir.Value, ir.Value, ir.Value]
    cos: ir.Value
    sin: ir.Value
    norms: tuple[ir.Value, ir.Value] | None
    epsilon: float
    scores: _Scores


class FuseAttention(GraphPass):
    """DynamicMaskAttention and all up to the projections -> MatMul(x, [W_q W_k W_v]), FusedDynamicMaskAttention.

    A node stays as it is where a projection has a bias, keys are not rotated, or values or scores are of an older form:
    `_parts` decides. Needs nodes as `FixedCapacity` leaves them, with past_lengths and unpadded scores, after
    `FoldScores`.
    """

    def requires(self, model: ir.Model) -> None:
        """Require attention nodes with lengths."""
        super().requires(model)
        for node in _attention(model.graph):
            check_signature(node)
            node_input(node, 7)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every attention node that has this form."""
        graph, modified = model.graph, False
        for node in _attention(graph):
            parts = _parts(node)
            if parts is not None:
                _fuse(graph, node, parts)
                modified = True
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified)


def _attention(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.domain == DOMAIN and node.op_type == DYNAMIC_MASK_ATTENTION.name]


def _parts(node: ir.Node) -> _Parts | None:
    """Return what stands before an attention node; None where the fused operator does not compute that."""
    query, key = heads(node.inputs[0]), heads(node.inputs[1])
    value, scores = linear(node.inputs[2]), _scores(node.inputs[3])
    if query.linear is None or key.linear is None or value is None or scores is None:
        return None
    if not query.linear.source is key.linear.source is value.source:
        return None
    rotations, norms = (query.rotation, key.rotation), (query.norm, key.norm)
    tables = [_tables(rotation) for rotation in rotations]
    if tables[0] is None or tables[0] != tables[1] or (norms[0] is None) != (norms[1] is None):
        return None
    epsilons = {_epsilon(norm) for norm in norms if norm is not None}
    if len(epsilons) > 1:
        return None
    cos, sin = tables[0]
    return _Parts(
        source=value.source,
        weights=(query.linear.weight, key.linear.weight, value.weight),
        cos=cos,
        sin=sin,
        norms=None if epsilons == set() else (_norm_weight(query), _norm_weight(key)),
        epsilon=epsilons.pop() if epsilons else 1e-6,  # of no norm: any positive number
        scores=scores,
    )


def _tables(rotation: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """Return cosines and sines [B, S, D / 2] of a rotation that turns whole heads by halves."""
    if rotation is None or any(rotation.attributes.get_int(x, 0) for x in ("interleaved", "rotary_embedding_dim")):
        return None
    return node_input(rotation, 1), node_input(rotation, 2)


def _epsilon(norm: ir.Node) -> float:
    return norm.attributes.get_float("epsilon", 1e-5)


def _norm_weight(of: Heads) -> ir.Value:
    assert of.norm is not None
    return node_input(of.norm, 1)


def _scores(value: ir.Value | None) -> _Scores | None:
    """Return the parts of scores as `FoldScores` leaves them; None where they have another form."""
    exp = computed_by(value, "Exp")
    scaled = computed_by(value if exp is None else exp.inputs[0], "Mul")
    softplus = computed_by(scaled.inputs[1], "Softplus") if scaled is not None else None
    product = computed_by(softplus.inputs[0], "MatMul") if softplus is not None else None
    if scaled is None or product is None:
        return None
    rate, source, columns = scaled.inputs[0], product.inputs[0], product.inputs[1]
    if rate is None or source is None or columns is None or rate.const_value is None or columns.const_value is None:
        return None
    if extent(columns, 0) % STEP:
        return None
    return _Scores(source, columns, rate, exp is not None)


def _fuse(graph: ir.Graph, node: ir.Node, parts: _Parts) -> None:
    (*names,), tensors = zip(*map(initializer, parts.weights), strict=True)
    widths = [tensor.shape.numpy()[0] for tensor in tensors]
    source, columns = parts.scores.source, initializer(parts.scores.weight)
    packed = weight(
        graph, "+".join(names), tensors[0], (tensors[0].shape.numpy()[1], sum(widths)),
        lambda: np.concatenate([tensor.numpy() for tensor in tensors]).T,
    )  # fmt: skip
    rows = weight(graph, f"{columns[0]}.rows", columns[1], columns[1].shape.numpy()[::-1], lambda: columns[1].numpy().T)
    tape = Tape()
    projected = tape.op("MatMul", [parts.source, packed])
    projected.dtype, projected.shape = FLOAT, ir.Shape([*shape_of(node_input(node, 2), 3)[:2], sum(widths)])
    given = {name: node.attributes[name] for name in DYNAMIC_MASK_ATTENTION.attributes}
    inputs = [projected, source, rows, parts.scores.rate, parts.cos, parts.sin, *node.inputs[4:8], *(parts.norms or ())]
    inputs += node.inputs[8:]  # of bounded caches
    fused = ir.node(
        FUSED_DYNAMIC_MASK_ATTENTION.name, inputs,
        {
            "exponential_score": int(parts.scores.exponential),
            "qk_norm": int(parts.norms is not None),
            "epsilon": parts.epsilon,
        },
        domain=DOMAIN, num_outputs=len(node.outputs), name=node.name,
    )  # fmt: skip
    fused.attributes.update(given)
    if "bounded" in node.attributes:
        fused.attributes.add(node.attributes["bounded"])
    for old, new in zip(node.outputs, fused.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    nodes = [*tape.nodes, fused]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, fused.outputs)


class UnfuseAttention(Lowering):
    """FusedDynamicMaskAttention -> standard operators in float32, then DynamicMaskAttention: what the node means.

    Queries and keys are rounded to the type of `projected` once, after they are rotated. Values get types, for in a
    graph of 16 bits it matters which are rounded.
    """

    domain, op_types = DOMAIN, (FUSED_DYNAMIC_MASK_ATTENTION.name,)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value]:
        """Record the operators."""
        projected, source, rows, rate, cos, sin, *caches = (node_input(node, place) for place in range(10))
        heads, kv_heads = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
        size, real = extent(caches[0], 3), projected.dtype or FLOAT
        has_norms, bounded = node.attributes["qk_norm"].as_int(), node.attributes.get_int("bounded", 0)
        norms = [node_input(node, place) for place in (10, 11)] if has_norms else [None] * 2
        caches += [node_input(node, place) for place in range(len(node.inputs) - 2 * bounded, len(node.inputs))]
        step = tape.op("MatMul", [source, tape.op("Transpose", [rows], {"perm": [1, 0]})])
        score = tape.op("Mul", [rate, tape.op("Softplus", [step])])
        if node.attributes["exponential_score"].as_int():
            score = tape.op("Exp", [score])
        parts = query, key, value = tape.op_multi_out(
            "Split", [projected, self.ints(*(size * count for count in (heads, kv_heads, kv_heads)))], {"axis": -1},
            num_outputs=3,
        )  # fmt: skip
        cos, sin = (tape.op("Unsqueeze", [table, self.ints(2)]) for table in (cos, sin))
        epsilon = constant(self.graph, np.array(node.attributes["epsilon"].as_float(), np.float32))

        def rotated(x: ir.Value, count: int, norm: ir.Value | None) -> ir.Value:
            x = tape.op("Reshape", [tape.op("Cast", [x], {"to": FLOAT}), self.ints(0, 0, count, size)])
            if norm is not None:
                mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), self.ints(-1)])
                x = tape.op("Mul", [tape.op("Div", [x, tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])]), norm])
            first, second = tape.op_multi_out(
                "Split", [x, self.ints(size // 2, size // 2)], {"axis": -1}, num_outputs=2
            )
            turned = [
                tape.op("Sub", [tape.op("Mul", [first, cos]), tape.op("Mul", [second, sin])]),
                tape.op("Add", [tape.op("Mul", [second, cos]), tape.op("Mul", [first, sin])]),
            ]
            return tape.op("Reshape", [tape.op("Concat", turned, {"axis": -1}), self.ints(0, 0, count * size)])

        turned = rotated(query, heads, norms[0]), rotated(key, kv_heads, norms[1])
        for made in [value for recorded in tape.nodes for value in recorded.outputs]:
            made.dtype = FLOAT
        rounded = [tape.op("Cast", [x], {"to": real}) for x in turned]
        for x in (*rounded, *parts):
            x.dtype = real
        results = tape.op_multi_out(
            DYNAMIC_MASK_ATTENTION.name, [*rounded, value, score, *caches],
            {name: node.attributes[name].value for name in DYNAMIC_MASK_ATTENTION.attributes} | {"bounded": bounded},
            domain=DOMAIN, num_outputs=len(node.outputs),
        )  # fmt: skip
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
        return results
