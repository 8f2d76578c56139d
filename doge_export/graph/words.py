"""Translations to ONNX of every PyTorch call that a Doge makes.

A word takes the writer, the type of the call's result, and the call's own arguments: tensors as values, extents as
values without axes, everything else as PyTorch was given it. Most are of the standard; three are our own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch.nn import functional as F

from doge_export.graph.extents import Type
from doge_export.graph.schemas import DOMAIN
from doge_export.graph.writer import INT64, Writer

Word = Callable[..., Any]


class _Ordered(NamedTuple):
    values: ir.Value
    indices: ir.Value


# Layers and activations


def _linear(w: Writer, result: Type, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    product = w.op("MatMul", x, w.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else w.op("Add", product, bias)


def _rms_norm(
    w: Writer, result: Type, x: ir.Value, normalized_shape: Sequence[int], weight: ir.Value, eps: float
) -> ir.Value:
    return w.op("RMSNormalization", x, weight, axis=-len(normalized_shape), epsilon=eps)


def _embedding(w: Writer, result: Type, ids: ir.Value, weight: ir.Value, **training: Any) -> ir.Value:
    return w.op("Gather", weight, ids, axis=0)


def _silu(w: Writer, result: Type, x: ir.Value, inplace: bool = False) -> ir.Value:
    return w.op("Mul", x, w.op("Sigmoid", x))


# Element by element


def _unary(op_type: str) -> Word:
    def word(w: Writer, result: Type, x: ir.Value) -> ir.Value:
        return w.op(op_type, x)

    return word


def _arithmetic(op_type: str) -> Word:
    def word(w: Writer, result: Type | None, x: Any, y: Any) -> ir.Value:
        if not isinstance(x, ir.Value) and op_type in ("Add", "Mul"):
            x, y = y, x  # as PyTorch, which has methods of tensors only
        dtype = INT64 if result is None else result.dtype
        return w.op(op_type, w.typed(x, dtype), w.typed(y, dtype))

    return word


def _comparison(op_type: str, negated: bool = False) -> Word:
    def word(w: Writer, result: Type, x: ir.Value, number: float) -> ir.Value:
        found = w.op(op_type, x, w.typed(number, _dtype(x)))
        return w.op("Not", found) if negated else found

    return word


def _where(w: Writer, result: Type, condition: ir.Value, x: Any, y: Any) -> ir.Value:
    return w.op("Where", condition, w.typed(x, result.dtype), w.typed(y, result.dtype))


def _clamp(w: Writer, result: Type, x: ir.Value, min: float) -> ir.Value:
    return w.op("Clip", x, w.typed(min, result.dtype))


def _cast(w: Writer, result: Type, x: ir.Value, *dtype: Any) -> ir.Value:
    return w.typed(x, result.dtype)


def _dtype(x: ir.Value) -> ir.DataType:
    if x.dtype is None:
        raise ValueError(f"{x.name} has no type")
    return x.dtype


# Axes


def _reshape(w: Writer, result: Type, x: ir.Value, *how: Any) -> ir.Value:
    return w.reshape(x, result)


def _transpose(w: Writer, result: Type, x: ir.Value, first: int, second: int) -> ir.Value:
    perm = list(range(len(result.axes)))
    perm[first], perm[second] = perm[second], perm[first]
    return w.op("Transpose", x, perm=perm)


def _squeeze(w: Writer, result: Type, x: ir.Value, dim: int) -> ir.Value:
    return w.op("Squeeze", x, w.constant([dim]))


def _expand(w: Writer, result: Type, x: ir.Value, *sizes: Any) -> ir.Value:
    kept = [1 if isinstance(size, int) and size == -1 else size for size in sizes]  # of both, ONNX takes the larger
    return w.op("Expand", x, w.sizes(kept))


def _cat(w: Writer, result: Type, tensors: Sequence[ir.Value], dim: int) -> ir.Value:
    return w.op("Concat", *tensors, axis=dim)


def _gather(w: Writer, result: Type, x: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    return w.op("GatherElements", x, index, axis=dim)


def _getitem(w: Writer, result: Type, x: Any, index: Any) -> Any:
    """Take a part of a tuple, or index a tensor: x[0], x[2:], x[..., None, :]; plain numbers, no steps."""
    if isinstance(x, tuple):
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    taken = sum(part is not None and part is not Ellipsis for part in index)
    rest = [slice(None)] * (len(x.shape) - taken)
    place = index.index(Ellipsis) if Ellipsis in index else len(index)
    parts = [*index[:place], *rest, *index[place + 1 :]]
    source = 0
    gone: list[int] = []
    new: list[int] = []
    for part in parts:
        if part is None:
            new.append(source - len(gone) + len(new))
            continue
        if isinstance(part, int):
            x = w.op("Gather", x, w.constant(part), axis=source - len(gone))
            gone.append(source)
        elif part != slice(None):
            if part.step is not None:
                raise NotImplementedError(f"no ONNX for a slice with a step: {part}")
            stop = 2**63 - 1 if part.stop is None else part.stop
            x = w.op("Slice", x, *(w.constant([n]) for n in (part.start or 0, stop, source - len(gone))))
        source += 1
    for axis in new:
        x = w.op("Unsqueeze", x, w.constant([axis]))
    return x


def _getattr(w: Writer, result: Any, x: Any, name: str) -> Any:
    if name == "shape":
        return tuple(axis if isinstance(axis, int) else w.extent(axis) for axis in result)
    # Types and devices are in the results' types.
    return None if name in ("dtype", "device") else getattr(x, name)


# Over an axis


def _reduction(op_type: str) -> Word:
    def word(w: Writer, result: Type, x: ir.Value, dim: int | tuple[int, ...] | None = None) -> ir.Value:
        axes = () if dim is None else (w.constant([dim] if isinstance(dim, int) else list(dim)),)
        return w.op(op_type, x, *axes, keepdims=0)

    return word


def _topk(w: Writer, result: Any, x: ir.Value, k: int, dim: int) -> _Ordered:
    return _Ordered(*w.ops(2, "TopK", x, w.constant([k]), axis=dim))


def _sort(w: Writer, result: Any, x: ir.Value, dim: int, descending: bool) -> _Ordered:
    return _topk(w, result, x, result[0].axes[dim], dim)


# Made of sizes


def _arange(w: Writer, result: Type, end: ir.Value, device: Any = None) -> ir.Value:
    return w.op("Range", w.constant(0), end, w.constant(1))


def _new_empty(w: Writer, result: Type, x: ir.Value, *sizes: Any, dtype: Any = None) -> ir.Value:
    return w.op("ConstantOfShape", w.sizes(sizes))


# Our own


def _rotate(w: Writer, result: Type, x: ir.Value, cos: ir.Value, sin: ir.Value, num_heads: int) -> ir.Value:
    return w.op("RotaryEmbedding", x, cos, sin, num_heads=num_heads)


def _dynamic_mask_attention(w: Writer, result: Any, *tensors: ir.Value, **attributes: Any) -> Any:
    return w.ops(4, "DynamicMaskAttention", *tensors, domain=DOMAIN, **attributes)


def _ratio_mask_attention(
    w: Writer,
    result: Any,
    *tensors: ir.Value,
    ratio: float,
    of_excess: bool,
    adds_causality: bool,
    **attributes: Any,
) -> Any:
    attributes |= {"ratio": repr(ratio), "of_excess": int(of_excess), "adds_causality": int(adds_causality)}
    return w.ops(4, "RatioMaskAttention", *tensors, domain=DOMAIN, **attributes)


def _cdmoe(
    w: Writer,
    result: Type,
    hidden: ir.Value,
    scores_x: ir.Value,
    scores_y: ir.Value,
    down_embed: ir.Value,
    up_embed: ir.Value,
    num_experts_per_tok: int,
    weights_inside: bool,
) -> ir.Value:
    return w.op(
        "CDMoE",
        *(hidden, scores_x, scores_y, down_embed, up_embed),
        domain=DOMAIN,
        num_experts_per_tok=num_experts_per_tok,
        weights_inside=int(weights_inside),
    )


WORDS: dict[Any, Word] = {
    F.linear: _linear,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    F.silu: _silu,
    F.softplus: _unary("Softplus"),
    torch.exp: _unary("Exp"),
    torch.reciprocal: _unary("Reciprocal"),
    "cos": _unary("Cos"),
    "sin": _unary("Sin"),
    operator.add: _arithmetic("Add"),
    operator.sub: _arithmetic("Sub"),
    operator.mul: _arithmetic("Mul"),
    operator.truediv: _arithmetic("Div"),
    operator.pow: _arithmetic("Pow"),
    operator.matmul: _arithmetic("MatMul"),
    operator.lt: _comparison("Less"),
    operator.gt: _comparison("Greater"),
    operator.eq: _comparison("Equal"),
    operator.ne: _comparison("Equal", negated=True),
    torch.where: _where,
    "clamp": _clamp,
    "float": _cast,
    "bool": _cast,
    "to": _cast,
    "reshape": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "expand": _expand,
    "gather": _gather,
    torch.cat: _cat,
    operator.getitem: _getitem,
    getattr: _getattr,
    "sum": _reduction("ReduceSum"),
    "max": _reduction("ReduceMax"),
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    "topk": _topk,
    "sort": _sort,
    torch.arange: _arange,
    "new_empty": _new_empty,
    torch.ops.doge.rotate.default: _rotate,
    torch.ops.doge.dynamic_mask_attention.default: _dynamic_mask_attention,
    torch.ops.doge.ratio_mask_attention.default: _ratio_mask_attention,
    torch.ops.doge.cdmoe.default: _cdmoe,
}
"""Translations by torch function or operator, or by the name of a tensor's method."""
