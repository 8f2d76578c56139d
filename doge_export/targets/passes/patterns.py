"""What passes recognise of the canonical graph: linear layers, norms by head, rotation."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value`, if it is of this operator."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


@dataclasses.dataclass(frozen=True)
class Linear:
    """`source` times a stored weight [out, in], without bias."""

    source: ir.Value
    weight: ir.Value


def linear(value: ir.Value | None) -> Linear | None:
    """The linear layer that `value` comes from; None where it has a bias or is none."""
    product = made_by(value, "MatMul")
    turned = made_by(product.inputs[1], "Transpose") if product is not None else None
    if product is None or turned is None or product.inputs[0] is None:
        return None
    stored = turned.inputs[0]
    return Linear(product.inputs[0], stored) if stored is not None and stored.is_initializer() else None


@dataclasses.dataclass(frozen=True)
class Heads:
    """Queries or keys on their way into attention: projected, normalised by head (`norm` None: not), rotated."""

    linear: Linear | None
    projected: ir.Value
    norm: ir.Node | None
    rotation: ir.Node | None


def heads(value: ir.Value | None) -> Heads:
    """The steps behind an attention node's query or key [B, S, heads * D]."""
    assert value is not None
    rotation = made_by(value, "RotaryEmbedding")
    projected = rotation.inputs[0] if rotation is not None else value
    joined = made_by(projected, "Reshape")
    norm = made_by(joined.inputs[0], "RMSNormalization") if joined is not None else None
    by_head = made_by(norm.inputs[0], "Reshape") if norm is not None else None
    if by_head is not None:
        projected = by_head.inputs[0]
    assert projected is not None
    return Heads(linear(projected), projected, norm if by_head is not None else None, rotation)
