"""The operators of domain `doge`, as PyTorch defines them. Every other implementation is tested against these.

Two carry every published Doge but those with a ratio mask, which have an attention operator of their own.

Symbols: B batch, S new tokens, P cached tokens, T = P + S, Hq query heads, Hkv key/value heads, Hs score heads
(1, Hkv or Hq), D head size, H hidden size, R routing heads, K keys of a routing half, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEG = torch.finfo(torch.float32).min
"""The score of a token that must not be seen: the lowest finite float32."""


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest along the last axis; of equal values the lower index comes first.

    torch.topk promises no order among equals, ONNX TopK does: a stable sort gives the same total order.
    """
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _per_head(tensor: Tensor, heads: int) -> Tensor:
    """[B, S, heads * D] -> [B, heads, S, D]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.library.custom_op("doge::dynamic_mask_attention", mutates_args=())
def dynamic_mask_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_score: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Causal attention whose logits carry a score for each key.

    Args:
        query: [B, S, Hq * D], after norm and RoPE.
        key: [B, S, Hkv * D], after norm and RoPE.
        value: [B, S, Hkv * D].
        score: [B, S, Hs] float32, exp(A * softplus(dt_proj(value))); NEG where the token is padding.
        past_key: [B, Hkv, P, D].
        past_value: [B, Hkv, P, D].
        past_score: [B, Hs, P] float32.
        num_heads: Hq.
        kv_num_heads: Hkv.
        scale: factor of the dot products.
        keep_window_size: w; where 0 < w < T each (batch, score head, token) keeps the w visible keys of highest score,
            the lower index among equals. 0 keeps every key.

    Returns:
        output [B, S, Hq * D], present_key [B, Hkv, T, D], present_value [B, Hkv, T, D], present_score [B, Hs, T].

    A row that sees only padding gives a finite, unspecified value.
    """
    present_key, present_value, present_score = _append(
        key, value, score, past_key, past_value, past_score, kv_num_heads
    )
    batch, score_heads, total = present_score.shape
    new = query.shape[1]

    kept = _causal(new, total, query.device)
    bias = present_score[:, :, None, :].expand(batch, score_heads, new, total)
    if 0 < keep_window_size < total:
        best = _largest(bias.masked_fill(~kept, NEG), keep_window_size)
        kept = kept & torch.zeros_like(bias, dtype=torch.bool).scatter(-1, best, True)
    output = _attend(query, present_key, present_value, bias.masked_fill(~kept, NEG), num_heads, scale)
    return output, present_key, present_value, present_score


def _append(
    key: Tensor,
    value: Tensor,
    score: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_score: Tensor,
    kv_num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cache of P tokens and S new ones, as [B, Hkv, T, D] twice and [B, Hs, T]."""
    return (
        torch.cat([past_key, _per_head(key, kv_num_heads)], dim=2),
        torch.cat([past_value, _per_head(value, kv_num_heads)], dim=2),
        torch.cat([past_score, score.transpose(1, 2)], dim=2),
    )


def _causal(new: int, total: int, device: torch.device) -> Tensor:
    """[S, T] bool: key j is visible to new token i when j <= P + i."""
    keys = torch.arange(total, device=device)
    return keys <= keys[total - new :, None]


def _attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, num_heads: int, scale: float) -> Tensor:
    """Softmax attention of query [B, S, Hq * D] with a bias [B, Hs, S, T], in float32, as [B, S, Hq * D]."""
    bias = bias.repeat_interleave(num_heads // bias.shape[1], dim=1)
    group = num_heads // keys.shape[1]
    queries = _per_head(query, num_heads).float()
    logits = scale * queries @ keys.float().repeat_interleave(group, dim=1).transpose(2, 3) + bias
    # NEG absorbs any dot product, so a key left out has weight 0 unless the whole row is left out.
    output = logits.softmax(dim=-1) @ values.float().repeat_interleave(group, dim=1)
    return output.transpose(1, 2).flatten(2).to(query.dtype)


def attention_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_score: Tensor,
    *attributes: Any,
    **named_attributes: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors of the types that either attention operator gives, without their values."""
    batch, heads, past, size = past_key.shape
    total = past + query.shape[1]
    return (
        torch.empty_like(query),
        past_key.new_empty(batch, heads, total, size),
        past_value.new_empty(batch, heads, total, size),
        past_score.new_empty(batch, past_score.shape[1], total),
    )


dynamic_mask_attention.register_fake(attention_outputs)


@torch.library.custom_op("doge::ratio_mask_attention", mutates_args=())
def ratio_mask_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_score: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    ratio: float,
    keep_window_size: int,
    of_excess: bool,
    adds_causality: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Causal attention that leaves out a share of all keys by score, before causality (`RatioMask`).

    As `dynamic_mask_attention`, but padding is ranked like any token, so it cannot be folded into the scores: score
    [B, S, Hs + 1] and past_score [B, Hs + 1, P] carry it as one more head, 0 for a token and NEG for padding.

    kthvalue over all T keys, after small-doge 8eec8cc `DogeAttention.prepare_dynamic_mask`.
    """
    present_key, present_value, present_score = _append(
        key, value, score, past_key, past_value, past_score, kv_num_heads
    )
    total = present_score.shape[2]
    bias, padding = present_score[:, :-1], present_score[:, -1:]
    rank = int((total - keep_window_size if of_excess else total) * ratio) if total > keep_window_size else 0
    if rank > 0:
        bias = torch.where(bias < bias.kthvalue(rank, dim=-1, keepdim=True).values, NEG, bias)
    mask = padding[:, :, None, :].masked_fill(~_causal(query.shape[1], total, query.device), NEG)
    bias = bias[:, :, None, :]
    # NEG + NEG is -inf: a row left without any key is even over those that only one of the two leaves out.
    bias = bias + mask if adds_causality else torch.where(mask == NEG, NEG, bias)
    output = _attend(query, present_key, present_value, bias, num_heads, scale)
    return output, present_key, present_value, present_score


ratio_mask_attention.register_fake(attention_outputs)


@torch.library.custom_op("doge::cdmoe", mutates_args=())
def cdmoe(
    hidden: Tensor,
    scores_x: Tensor,
    scores_y: Tensor,
    down_embed: Tensor,
    up_embed: Tensor,
    num_experts_per_tok: int,
    weights_inside: bool = False,
) -> Tensor:
    """The routed part of Cross Domain Mixture of Experts; the shared MLP is added outside.

    Args:
        hidden: [B, S, H].
        scores_x: [B, S, R, K], routing scores of the first half.
        scores_y: [B, S, R, K], of the second half.
        down_embed: [E, H], E >= K * K; expert a * K + b pairs key a of x with key b of y.
        up_embed: [E, H].
        num_experts_per_tok: k, at most K * K.
        weights_inside: silu of the weighted product, instead of the weighted silu (the first generation).

    Returns:
        [B, S, H]: sum over routing heads and the k best pairs of
        silu(<down_embed[e], hidden>) * softmax(scores over the picks) * up_embed[e].
    """
    grid = (scores_x.float()[..., :, None] + scores_y.float()[..., None, :]).flatten(-2)
    experts = _largest(grid, num_experts_per_tok)
    weights = grid.gather(-1, experts).softmax(dim=-1).to(hidden.dtype)
    products = (down_embed[experts] @ hidden[:, :, None, :, None]).squeeze(-1)
    silu = torch.nn.functional.silu
    activation = silu(products * weights) if weights_inside else silu(products) * weights
    return (activation[..., None, :] @ up_embed[experts]).sum(dim=2).squeeze(2)


@cdmoe.register_fake
def _(hidden, scores_x, scores_y, down_embed, up_embed, num_experts_per_tok, weights_inside=False):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden)


def _differentiate(op: Any, function: Callable[..., Any]) -> None:
    """Give `op` the gradient of its own body, by running the body once more: enough for training small models."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inputs = inputs

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [
                x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x for x in ctx.inputs
            ]
            outputs = function(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, gradients, allow_unused=True))
        return tuple(next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)

    op.register_autograd(backward, setup_context=setup_context)


_differentiate(dynamic_mask_attention, dynamic_mask_attention._init_fn)
_differentiate(ratio_mask_attention, ratio_mask_attention._init_fn)
_differentiate(cdmoe, cdmoe._init_fn)
