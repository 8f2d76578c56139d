"""Patterns of the canonical graph that passes recognise: linear layers, norms by head, rotation."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from doge_export.targets.contract import ContractError, node_input


def computed_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that computes `value` if it is of this operator, else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer without bias.

    Attributes:
        source: its input [..., in].
        weight: its initializer [out, in].
    """

    source: ir.Value
    weight: ir.Value


def linear(value: ir.Value | None) -> Linear | None:
    """Return the linear layer that computes `value`; None where it has a bias or is anything else."""
    product = computed_by(value, "MatMul")
    transpose = computed_by(product.inputs[1], "Transpose") if product is not None else None
    if product is None or transpose is None or product.inputs[0] is None:
        return None
    stored = transpose.inputs[0]
    return Linear(product.inputs[0], stored) if stored is not None and stored.is_initializer() else None


@dataclasses.dataclass(frozen=True)
class Heads:
    """The steps that compute queries or keys.

    Attributes:
        linear: the projection; None where it is not a linear layer without bias.
        projected: its result [B, S, heads * D].
        norm: RMSNormalization by head; None where there is none.
        rotation: RotaryEmbedding; None where there is none.
    """

    linear: Linear | None
    projected: ir.Value
    norm: ir.Node | None
    rotation: ir.Node | None


def heads(value: ir.Value | None) -> Heads:
    """Return the steps behind an attention node's query or key [B, S, heads * D].

    Raises:
        ContractError: the query or key is omitted.
    """
    if value is None:
        raise ContractError("an omitted input", "expected queries or keys")
    rotation = computed_by(value, "RotaryEmbedding")
    projected = node_input(rotation, 0) if rotation is not None else value
    joined = computed_by(projected, "Reshape")
    norm = computed_by(joined.inputs[0], "RMSNormalization") if joined is not None else None
    by_head = computed_by(norm.inputs[0], "Reshape") if norm is not None else None
    if by_head is not None:
        projected = node_input(by_head, 0)
    return Heads(linear(projected), projected, norm if by_head is not None else None, rotation)
