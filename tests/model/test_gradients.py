"""Gradients of the custom operators against autograd through another formulation, in float64."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from doge_export.model import operators
from doge_export.model.rope import rotate

HEADS, KV_HEADS, SIZE, BATCH, NEW, PAST = 4, 2, 8, 2, 4, 3


def gradients(function, inputs, dtype):
    """d/d input of a fixed weighting of every element of every output."""
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    outputs = function(*inputs)
    total = torch.zeros((), dtype=torch.float64)
    for number, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        torch.manual_seed(number)
        total = total + (output.double() * torch.randn(output.shape, dtype=torch.float64)).sum()
    return torch.autograd.grad(total, inputs)


def check(operator, plain, inputs):
    """The operators compute in float32 by contract, whatever they are given."""
    for found, expected in zip(
        gradients(operator, inputs, torch.float32), gradients(plain, inputs, torch.float64), strict=True
    ):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def plain_attention(window):
    """scaled_dot_product_attention under an additive mask; selection by comparing each key with every other one."""

    def attention(query, key, value, score, past_key, past_value, past_score):
        keys = torch.cat([past_key, key.view(BATCH, NEW, KV_HEADS, SIZE).transpose(1, 2)], 2)
        values = torch.cat([past_value, value.view(BATCH, NEW, KV_HEADS, SIZE).transpose(1, 2)], 2)
        scores = torch.cat([past_score, score.transpose(1, 2)], 2)
        total = PAST + NEW
        visible = torch.ones(NEW, total, dtype=torch.bool).tril(PAST)
        better = scores[:, :, None, None, :] > scores[:, :, None, :, None]  # [B, Hkv, 1, key, other key]
        rank = (better & visible[None, None, :, None, :]).sum(-1)
        kept = visible & (rank < window) if 0 < window < total else visible.expand(BATCH, KV_HEADS, NEW, total)
        bias = scores[:, :, None, :].masked_fill(~kept, -torch.inf)
        group = HEADS // KV_HEADS
        output = F.scaled_dot_product_attention(
            query.view(BATCH, NEW, HEADS, SIZE).transpose(1, 2),
            keys.repeat_interleave(group, 1),
            values.repeat_interleave(group, 1),
            attn_mask=bias.repeat_interleave(group, 1),
            scale=0.3,
        )
        return output.transpose(1, 2).flatten(2), keys, values, scores

    return attention


def attention_inputs():
    torch.manual_seed(0)
    return [
        torch.randn(BATCH, NEW, HEADS * SIZE),
        torch.randn(BATCH, NEW, KV_HEADS * SIZE),
        torch.randn(BATCH, NEW, KV_HEADS * SIZE),
        torch.rand(BATCH, NEW, KV_HEADS) * 2,
        torch.randn(BATCH, KV_HEADS, PAST, SIZE),
        torch.randn(BATCH, KV_HEADS, PAST, SIZE),
        torch.rand(BATCH, KV_HEADS, PAST) * 2,
    ]


def test_attention_over_every_key():
    check(
        lambda *x: operators.dynamic_mask_attention(*x, HEADS, KV_HEADS, 0.3, 0), plain_attention(0), attention_inputs()
    )


def test_attention_over_selected_keys():
    check(
        lambda *x: operators.dynamic_mask_attention(*x, HEADS, KV_HEADS, 0.3, 3), plain_attention(3), attention_inputs()
    )


def test_cdmoe():
    """Every expert weighed, those not picked by zero."""
    tokens, routing_heads, keys, experts, hidden, picks = 5, 2, 3, 10, 8, 4

    def plain(x, scores_x, scores_y, down, up):
        sums = (scores_x[..., :, None] + scores_y[..., None, :]).flatten(-2)
        lowest = sums.sort(-1).values[..., -picks, None]
        weights = sums.masked_fill(sums < lowest, -torch.inf).softmax(-1)
        activation = F.silu(x @ down[: keys * keys].T)
        return (weights.sum(2) * activation) @ up[: keys * keys]

    torch.manual_seed(1)
    inputs = [
        torch.randn(BATCH, tokens, hidden),
        torch.randn(BATCH, tokens, routing_heads, keys),
        torch.randn(BATCH, tokens, routing_heads, keys),
        torch.randn(experts, hidden),
        torch.randn(experts, hidden),
    ]
    check(lambda *x: operators.cdmoe(*x, picks), plain, inputs)


def test_rotation():
    """Against finite differences; angles are constants."""
    torch.manual_seed(2)
    x = torch.randn(2, 3, 2 * SIZE, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(2, 3, SIZE // 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin(), 2), (x,))
