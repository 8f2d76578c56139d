"""Make an engine's graph runnable by onnxruntime: give the plugin's nodes their bodies, change nothing else.

This checks the numbers of a 16-bit graph without GPU and TensorRT. onnxruntime stores 16 bits where the graph says so
and computes inside most operators in float32, as the plugin's kernels and tensor cores do.
"""

# mypy: ignore-errors

from __future__ import annotations

import onnx_ir as ir
from onnxscript import FLOAT, INT32, script
from onnxscript import opset18 as op

from doge_export.graph.functions import DOGE, CDMoE, CDMoEWeightsInside
from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import run_passes
from doge_export.targets.passes.fuse_attention import UnfuseAttention
from doge_export.targets.passes.fuse_routing import UnfuseRouting

_OF_TENSORRT = "TRT_"
"""Prefix of the attributes of standard operators that only TensorRT knows."""


@script(DOGE, default_opset=op)
def DynamicMaskAttention(
    query,
    key,
    value,
    score,
    past_key,
    past_value,
    past_score,
    past_lengths,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> tuple[FLOAT, FLOAT, FLOAT, FLOAT]:
    """DynamicMaskAttention over caches of fixed capacity C, as defined in plugins/include/doge/operators.h."""
    query_heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    value_heads = op.Reshape(op.Constant(value_int=kv_num_heads), op.Constant(value_ints=[1]))
    keep = op.Constant(value_ints=[0, 0])
    rest = op.Constant(value_ints=[-1])
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    zeros = op.Constant(value_ints=[0])
    ones = op.Constant(value_ints=[1])

    # Slot j of row b takes new token j - P of that row, if there is one, and else stays what it was.
    capacity = op.Shape(past_score, start=2, end=3)
    new = op.Shape(query, start=1, end=2)
    slots = op.Range(zero, op.Squeeze(capacity), one)
    lengths = op.Unsqueeze(op.Cast(past_lengths, to=7), ones)
    token = op.Sub(slots, lengths)
    is_new = op.Unsqueeze(op.And(op.GreaterOrEqual(token, zero), op.Less(token, new)), ones)
    nearest = op.Unsqueeze(op.Min(op.Max(token, zeros), op.Sub(new, ones)), ones)

    split = op.Concat(keep, value_heads, rest, axis=0)
    of_head = op.Unsqueeze(nearest, rest)
    shape_of_cache = op.Shape(past_key)
    each = op.Expand(of_head, shape_of_cache)
    new_key = op.Transpose(op.Reshape(key, split), perm=[0, 2, 1, 3])
    new_value = op.Transpose(op.Reshape(value, split), perm=[0, 2, 1, 3])
    new_score = op.Transpose(score, perm=[0, 2, 1])
    writes = op.Unsqueeze(is_new, rest)
    present_key = op.Where(writes, op.GatherElements(new_key, each, axis=2), past_key)
    present_value = op.Where(writes, op.GatherElements(new_value, each, axis=2), past_value)
    each_score = op.Expand(nearest, op.Shape(past_score))
    present_score = op.Where(is_new, op.GatherElements(new_score, each_score, axis=2), past_score)

    # New token i of a row stands at P + i and sees the slots up to there.
    rows = op.Unsqueeze(op.Add(lengths, op.Range(zero, op.Squeeze(new), one)), op.Constant(value_ints=[1, 3]))
    visible = op.LessOrEqual(slots, rows)
    nothing = op.Constant(value_float=-3.4028234663852886e38)
    bias = op.Where(visible, op.Unsqueeze(present_score, op.Constant(value_ints=[2])), nothing)

    window = op.Reshape(op.Constant(value_int=keep_window_size), ones)
    count = op.Where(op.Greater(window, zeros), op.Min(window, capacity), capacity)
    _, best = op.TopK(bias, count, axis=-1)
    bias = op.ScatterElements(op.Expand(nothing, op.Shape(bias)), best, op.GatherElements(bias, best, axis=-1), axis=-1)

    group = op.Div(query_heads, value_heads)
    queries = op.Transpose(op.Reshape(query, op.Concat(keep, query_heads, rest, axis=0)), perm=[0, 2, 1, 3])
    shape = op.Shape(queries)
    tail = op.Slice(shape, op.Constant(value_ints=[2]), op.Constant(value_ints=[4]))
    grouped = op.Reshape(queries, op.Concat(zeros, value_heads, group, tail, axis=0))
    keys_of_group = op.Unsqueeze(op.Transpose(present_key, perm=[0, 1, 3, 2]), op.Constant(value_ints=[2]))
    products = op.MatMul(op.Cast(grouped, to=1), op.Cast(keys_of_group, to=1))
    score_heads = op.Shape(score, start=2, end=3)
    by_score = op.Concat(zeros, score_heads, op.Div(query_heads, score_heads), op.Shape(bias, start=2, end=4), axis=0)
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
def BoundedDynamicMaskAttention(
    query,
    key,
    value,
    score,
    past_key,
    past_value,
    past_score,
    past_lengths,
    new_lengths,
    past_slots,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> tuple[FLOAT, FLOAT, FLOAT, FLOAT, INT32]:
    """DynamicMaskAttention over bounded caches, as defined there; keys stay in the order of the text."""
    query_heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    value_heads = op.Reshape(op.Constant(value_int=kv_num_heads), op.Constant(value_ints=[1]))
    keep = op.Constant(value_ints=[0, 0])
    rest = op.Constant(value_ints=[-1])
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    zeros = op.Constant(value_ints=[0])
    ones = op.Constant(value_ints=[1])
    twos = op.Constant(value_ints=[2])
    nothing = op.Constant(value_float=-3.4028234663852886e38)
    window = op.Reshape(op.Constant(value_int=keep_window_size), ones)

    # The slots, then the new tokens: T keys, of which the live ones are in the order of the text.
    capacity = op.Shape(past_score, start=2, end=3)
    new = op.Shape(query, start=1, end=2)
    split = op.Concat(keep, value_heads, rest, axis=0)
    keys = op.Concat(past_key, op.Transpose(op.Reshape(key, split), perm=[0, 2, 1, 3]), axis=2)
    values = op.Concat(past_value, op.Transpose(op.Reshape(value, split), perm=[0, 2, 1, 3]), axis=2)
    token = op.Range(zero, op.Squeeze(new), one)
    past = op.Unsqueeze(op.Cast(past_lengths, to=7), ones)
    is_cached = op.Less(op.Range(zero, op.Squeeze(capacity), one), past)
    is_fresh = op.Less(token, op.Unsqueeze(op.Cast(new_lengths, to=7), ones))
    is_live = op.Unsqueeze(op.Concat(is_cached, is_fresh, axis=1), ones)  # [B, 1, T]
    all_scores = op.Concat(past_score, op.Transpose(score, perm=[0, 2, 1]), axis=2)
    scores = op.Where(is_live, all_scores, nothing)
    places = op.Unsqueeze(op.Cast(op.Add(past, token), to=6), ones)
    new_slots = op.Expand(places, op.Concat(op.Shape(past_slots, start=0, end=2), new, axis=0))
    slots = op.Concat(past_slots, new_slots, axis=2)

    # The best C are kept; what is not live comes last.
    _, kept = op.TopK(scores, capacity, axis=-1)
    total = op.Shape(scores, start=2, end=3)
    live = op.GatherElements(op.Cast(op.Expand(is_live, op.Shape(scores)), to=7), kept, axis=2)
    order = op.Sub(kept, op.Mul(live, total))  # the live ones below zero
    _, by_place = op.TopK(order, capacity, axis=-1, largest=0)
    kept = op.GatherElements(kept, by_place, axis=2)
    each = op.Expand(op.Unsqueeze(kept, rest), op.Shape(past_key))
    present_key = op.GatherElements(keys, each, axis=2)
    present_value = op.GatherElements(values, each, axis=2)
    present_score = op.GatherElements(all_scores, kept, axis=2)
    present_slots = op.GatherElements(slots, kept, axis=2)

    # New token i sees all slots, and the new tokens up to itself: of these the w best.
    seen = op.LessOrEqual(token, op.Unsqueeze(token, ones))  # [S, S]
    all_slots = op.Expand(op.Constant(value_int=1), op.Concat(new, capacity, axis=0))
    visible = op.Concat(op.Cast(all_slots, to=9), seen, axis=1)
    bias = op.Where(visible, op.Unsqueeze(scores, twos), nothing)  # [B, Hkv, S, T]
    _, best = op.TopK(bias, window, axis=-1)
    bias = op.ScatterElements(op.Expand(nothing, op.Shape(bias)), best, op.GatherElements(bias, best, axis=-1), axis=-1)

    group = op.Div(query_heads, value_heads)
    queries = op.Transpose(op.Reshape(query, op.Concat(keep, query_heads, rest, axis=0)), perm=[0, 2, 1, 3])
    shape = op.Shape(queries)
    grouped = op.Reshape(
        queries, op.Concat(zeros, value_heads, group, op.Slice(shape, twos, op.Constant(value_ints=[4])), axis=0)
    )
    keys_of_group = op.Unsqueeze(op.Transpose(keys, perm=[0, 1, 3, 2]), twos)
    products = op.MatMul(op.Cast(grouped, to=1), op.Cast(keys_of_group, to=1))
    logits = op.Add(op.Mul(products, op.Constant(value_float=scale)), op.Unsqueeze(bias, twos))
    mixed = op.MatMul(op.Softmax(logits, axis=-1), op.Unsqueeze(op.Cast(values, to=1), twos))
    by_token = op.Transpose(op.Reshape(mixed, shape), perm=[0, 2, 1, 3])
    output = op.Reshape(by_token, op.Constant(value_ints=[0, 0, -1]))
    return op.CastLike(output, query), present_key, present_value, present_score, present_slots


def unfuse(model: ir.Model) -> None:
    """Replace fused nodes by what they mean, in place, down to the operators of the contract."""
    run_passes(model, (UnfuseAttention(), UnfuseRouting()))


def runnable(model: ir.Model) -> ir.Model:
    """Return a copy of an `EnginePlan.graph` that onnxruntime runs; it shares the weights."""
    copy = model.clone()
    for node in copy.graph:
        for name in [name for name in node.attributes if name.startswith(_OF_TENSORRT)]:
            del node.attributes[name]
    unfuse(copy)
    used = {node.op_type: node for node in copy.graph if node.domain == DOMAIN}
    bodies = {"DynamicMaskAttention": DynamicMaskAttention}
    if any(node.attributes.get_int("bounded", 0) for node in used.values()):
        bodies["DynamicMaskAttention"] = BoundedDynamicMaskAttention
    if "CDMoE" in used:
        inside = used["CDMoE"].attributes["weights_inside"].as_int()
        bodies["CDMoE"] = CDMoEWeightsInside if inside else CDMoE
    for name in used:
        proto = bodies[name].to_function_proto()
        proto.name = name
        body = ir.serde.deserialize_function(proto)
        copy.functions[body.identifier()] = body
    return copy
