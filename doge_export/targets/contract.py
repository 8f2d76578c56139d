"""The contract of a pass: what it needs of a graph, and an error that names the pass and the node or value at fault."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from doge_export.graph.schemas import (
    CDMOE,
    DOMAIN,
    DYNAMIC_MASK_ATTENTION,
    FUSED_CDMOE,
    FUSED_DYNAMIC_MASK_ATTENTION,
    RATIO_MASK_ATTENTION,
)

_SCHEMAS = {
    schema.name: schema
    for schema in (DYNAMIC_MASK_ATTENTION, RATIO_MASK_ATTENTION, FUSED_DYNAMIC_MASK_ATTENTION, CDMOE, FUSED_CDMOE)
}


class ContractError(ir.passes.PreconditionError):
    """A graph is not what a pass needs.

    Attributes:
        subject: the node or value at fault, in words.
        problem: what was expected of it, and what was found.
        pass_name: class name of the pass; empty while only a helper of the pass is known.
    """

    def __init__(self, subject: ir.Node | ir.Value | str, problem: str, pass_name: str = "") -> None:
        self.subject = subject if isinstance(subject, str) else describe(subject)
        self.problem, self.pass_name = problem, pass_name
        super().__init__(": ".join(part for part in (pass_name, self.subject, problem) if part))


class GraphPass(ir.passes.InPlacePass):
    """A pass over the main graph that checks what it needs before it changes anything.

    `requires` states the contract of a subclass. Every pass needs a graph without subgraphs: it would not see the
    nodes inside them.
    """

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> ir.passes.PassResult:
        """Check the contract and run the pass.

        Raises:
            ContractError: the graph is not what the pass needs.
        """
        try:
            return super().__call__(model_or_result)
        except ContractError as error:
            if error.pass_name:
                raise
            raise ContractError(error.subject, error.problem, type(self).__name__) from error

    def requires(self, model: ir.Model) -> None:
        """Require a graph without subgraphs."""
        for node in model.graph:
            for attribute in node.attributes.values():
                if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    raise ContractError(node, f"expected no subgraphs, found attribute {attribute.name}")


def run_passes(model: ir.Model, passes: Iterable[ir.passes.PassBase]) -> None:
    """Run passes one after another on `model`, which they change in place."""
    for one in passes:
        one(model)


def describe(subject: ir.Node | ir.Value) -> str:
    """Return the words by which an error names a node or a value."""
    if isinstance(subject, ir.Value):
        return f"value {subject.name}"
    operator = f"{subject.domain}.{subject.op_type}" if subject.domain else subject.op_type
    return f"{operator} node {subject.name or '(unnamed)'}"


def graph_input(graph: ir.Graph, name: str) -> ir.Value:
    """Return the graph input of this name.

    Raises:
        ContractError: there is none.
    """
    return _by_name(graph.inputs, name, "graph input")


def graph_output(graph: ir.Graph, name: str) -> ir.Value:
    """Return the graph output of this name.

    Raises:
        ContractError: there is none.
    """
    return _by_name(graph.outputs, name, "graph output")


def _by_name(values: Iterable[ir.Value], name: str, kind: str) -> ir.Value:
    values = list(values)
    for value in values:
        if value.name == name:
            return value
    names = ", ".join(str(value.name) for value in values) or "none"
    raise ContractError(f"{kind} {name}", f"missing; there are: {names}")


def node_input(node: ir.Node, place: int) -> ir.Value:
    """Return the input of a node at a place.

    Raises:
        ContractError: the node has no such input.
    """
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None:
        raise ContractError(node, f"expected an input at place {place}, found none")
    return value


def producer_of(value: ir.Value, *op_types: str) -> ir.Node:
    """Return the node that computes a value, which must be of one of these operators.

    Raises:
        ContractError: another operator, or no node, gives the value.
    """
    node = value.producer()
    if node is None or node.op_type not in op_types:
        found = "no node" if node is None else describe(node)
        raise ContractError(value, f"expected to be computed by {' or '.join(op_types)}, found {found}")
    return node


def shape_of(value: ir.Value, rank: int) -> ir.Shape:
    """Return the shape of a value, which must be known and have `rank` axes.

    Raises:
        ContractError: the shape is unknown or has another rank.
    """
    if value.shape is None or len(value.shape) != rank:
        raise ContractError(value, f"expected a shape of {rank} axes, found {value.shape}")
    return value.shape


def extent(value: ir.Value | None, axis: int) -> int:
    """Return the size of a static axis.

    Raises:
        ContractError: the value has no such axis, or it is dynamic.
    """
    if value is None:
        raise ContractError("an omitted input", f"expected a value with a static axis {axis}")
    size = value.shape[axis] if value.shape is not None and axis < len(value.shape) else None
    if not isinstance(size, int):
        raise ContractError(value, f"expected a static axis {axis}, found shape {value.shape}")
    return size


def initializer(value: ir.Value | None) -> tuple[str, ir.TensorProtocol]:
    """Return the name and the tensor of an initializer.

    Raises:
        ContractError: the value is computed or fed, not stored.
    """
    if value is None or value.name is None or value.const_value is None:
        raise ContractError("an omitted input" if value is None else value, "expected an initializer")
    return value.name, value.const_value


def check_attributes(node: ir.Node, *names: str) -> None:
    """Check that a node has these attributes.

    Raises:
        ContractError: one is missing.
    """
    for name in names:
        if name not in node.attributes:
            raise ContractError(node, f"expected attribute {name}, found {', '.join(node.attributes) or 'none'}")


def check_signature(node: ir.Node) -> None:
    """Check a node of domain `doge` against the schema of its operator: inputs and attributes.

    Raises:
        ContractError: the operator is unknown, an input or an attribute is missing.
    """
    schema = _SCHEMAS.get(node.op_type)
    if node.domain != DOMAIN or schema is None:
        raise ContractError(node, f"expected one of {DOMAIN}'s operators {', '.join(_SCHEMAS)}")
    for place in range(len(schema.inputs)):
        node_input(node, place)
    check_attributes(node, *schema.attributes)
