"""The two `doge` operators as ONNX functions of standard ops, so that the canonical graph runs anywhere.

RatioMaskAttention has none: only older checkpoints with dynamic_mask_ratio use it, and a target must lower it.

Written in onnxscript: the Python below is not run but translated, statement by statement. Symbols and meaning are those
of `doge_export.model.operators`, which these functions are tested against.
"""

# mypy: ignore-errors

import onnx_ir as ir
from onnxscript import FLOAT, script
from onnxscript import opset23 as op
from onnxscript.values import Opset

from doge_export.graph.schemas import DOMAIN, VERSION

DOGE = Opset(DOMAIN, VERSION)


@script(DOGE, default_opset=op)
def DynamicMaskAttention(
    query,
    key,
    value,
    score,
    past_key,
    past_value,
    past_score,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> tuple[FLOAT, FLOAT, FLOAT, FLOAT]:
    """Causal attention with a score for each key; see `model.operators.dynamic_mask_attention` for shapes."""
    query_heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    value_heads = op.Reshape(op.Constant(value_int=kv_num_heads), op.Constant(value_ints=[1]))
    keep = op.Constant(value_ints=[0, 0])
    rest = op.Constant(value_ints=[-1])

    split = op.Concat(keep, value_heads, rest, axis=0)
    present_key = op.Concat(past_key, op.Transpose(op.Reshape(key, split), perm=[0, 2, 1, 3]), axis=2)
    present_value = op.Concat(past_value, op.Transpose(op.Reshape(value, split), perm=[0, 2, 1, 3]), axis=2)
    present_score = op.Concat(past_score, op.Transpose(score, perm=[0, 2, 1]), axis=2)

    # Key j is visible to new token i when j <= P + i.
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    total = op.Shape(present_score, start=2, end=3)
    first = op.Sub(total, op.Shape(query, start=1, end=2))
    keys = op.Range(zero, op.Squeeze(total), one)
    rows = op.Unsqueeze(op.Slice(keys, first, total), op.Constant(value_ints=[1]))
    bias = op.Where(
        op.LessOrEqual(keys, rows),
        op.Unsqueeze(present_score, op.Constant(value_ints=[2])),
        op.Constant(value_float=-3.4028234663852886e38),
    )

    # The keep_window_size best visible keys; TopK puts the lower index first among equals.
    window = op.Reshape(op.Constant(value_int=keep_window_size), op.Constant(value_ints=[1]))
    count = op.Where(op.Greater(window, zero), op.Min(window, total), total)
    _, best = op.TopK(bias, count, axis=-1)
    nothing = op.Expand(op.Constant(value_float=-3.4028234663852886e38), op.Shape(bias))
    bias = op.ScatterElements(nothing, best, op.GatherElements(bias, best, axis=-1), axis=-1)

    # [B, Hkv, group, S, D] against [B, Hkv, 1, T, D]: no key is repeated for the queries of its group.
    group = op.Div(query_heads, value_heads)
    queries = op.Transpose(op.Reshape(query, op.Concat(keep, query_heads, rest, axis=0)), perm=[0, 2, 1, 3])
    shape = op.Shape(queries)
    tail = op.Slice(shape, op.Constant(value_ints=[2]), op.Constant(value_ints=[4]))
    grouped = op.Reshape(queries, op.Concat(op.Constant(value_ints=[0]), value_heads, group, tail, axis=0))
    keys_of_group = op.Unsqueeze(op.Transpose(present_key, perm=[0, 1, 3, 2]), op.Constant(value_ints=[2]))
    products = op.MatMul(op.Cast(grouped, to=1), op.Cast(keys_of_group, to=1))

    score_heads = op.Shape(score, start=2, end=3)
    by_score = op.Concat(
        op.Constant(value_ints=[0]),
        score_heads,
        op.Div(query_heads, score_heads),
        op.Shape(bias, start=2, end=4),
        axis=0,
    )
    logits = op.Add(
        op.Reshape(op.Mul(products, op.Constant(value_float=scale)), by_score),
        op.Unsqueeze(bias, op.Constant(value_ints=[2])),
    )
    weights = op.Reshape(op.Softmax(logits, axis=-1), op.Shape(products))
    values_of_group = op.Unsqueeze(op.Cast(present_value, to=1), op.Constant(value_ints=[2]))
    mixed = op.Reshape(op.MatMul(weights, values_of_group), shape)
    output = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
    return op.CastLike(output, query), present_key, present_value, present_score


@script(DOGE, default_opset=op)
def CDMoE(hidden, scores_x, scores_y, down_embed, up_embed, num_experts_per_tok: int, weights_inside: int) -> FLOAT:
    """The routed experts; see `model.operators.cdmoe` for shapes. The scores are float32 whatever the rest is."""
    x = op.Unsqueeze(scores_x, op.Constant(value_ints=[-1]))
    y = op.Unsqueeze(scores_y, op.Constant(value_ints=[-2]))
    grid = op.Reshape(op.Add(x, y), op.Constant(value_ints=[0, 0, 0, -1]))
    # The flat index of a pair is its expert, so TopK's order among equals is the operator's.
    count = op.Reshape(op.Constant(value_int=num_experts_per_tok), op.Constant(value_ints=[1]))
    best, experts = op.TopK(grid, count, axis=-1)
    weights = op.CastLike(op.Softmax(best, axis=-1), hidden)
    column = op.Unsqueeze(hidden, op.Constant(value_ints=[2, 4]))
    dots = op.Squeeze(op.MatMul(op.Gather(down_embed, experts), column), op.Constant(value_ints=[4]))
    activation = op.Mul(op.Mul(dots, op.Sigmoid(dots)), weights)
    mixed = op.MatMul(op.Unsqueeze(activation, op.Constant(value_ints=[3])), op.Gather(up_embed, experts))
    return op.Squeeze(op.ReduceSum(mixed, op.Constant(value_ints=[2]), keepdims=0), op.Constant(value_ints=[2]))


@script(DOGE, default_opset=op)
def CDMoEWeightsInside(
    hidden, scores_x, scores_y, down_embed, up_embed, num_experts_per_tok: int, weights_inside: int
) -> FLOAT:
    """CDMoE where weights_inside is 1; it stands in its place in the graphs of the first generation."""
    x = op.Unsqueeze(scores_x, op.Constant(value_ints=[-1]))
    y = op.Unsqueeze(scores_y, op.Constant(value_ints=[-2]))
    grid = op.Reshape(op.Add(x, y), op.Constant(value_ints=[0, 0, 0, -1]))
    count = op.Reshape(op.Constant(value_int=num_experts_per_tok), op.Constant(value_ints=[1]))
    best, experts = op.TopK(grid, count, axis=-1)
    weights = op.CastLike(op.Softmax(best, axis=-1), hidden)
    column = op.Unsqueeze(hidden, op.Constant(value_ints=[2, 4]))
    dots = op.Squeeze(op.MatMul(op.Gather(down_embed, experts), column), op.Constant(value_ints=[4]))
    weighted = op.Mul(dots, weights)
    activation = op.Mul(weighted, op.Sigmoid(weighted))
    mixed = op.MatMul(op.Unsqueeze(activation, op.Constant(value_ints=[3])), op.Gather(up_embed, experts))
    return op.Squeeze(op.ReduceSum(mixed, op.Constant(value_ints=[2]), keepdims=0), op.Constant(value_ints=[2]))


def body(name: str, weights_inside: bool = False) -> ir.Function:
    """Return the function body of an operator; CDMoE has one for each value of weights_inside."""
    function = {"DynamicMaskAttention": DynamicMaskAttention, "CDMoE": CDMoEWeightsInside if weights_inside else CDMoE}
    proto = function[name].to_function_proto()
    proto.name = name
    return ir.from_proto(proto)
