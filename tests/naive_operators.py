"""The two operators as loops in float64, written from the rules of the operators' specification and nothing else."""

from __future__ import annotations

import itertools

import numpy as np

NEG = np.finfo(np.float32).min
Array = np.ndarray


def dynamic_mask_attention(
    query: Array,
    key: Array,
    value: Array,
    score: Array,
    past_key: Array,
    past_value: Array,
    past_score: Array,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
    keep_window_size: int,
) -> tuple[Array, Array, Array, Array]:
    """Shapes as in the specification. NaN in the rows whose value it leaves open."""
    batch, new, _ = query.shape
    past, size = past_key.shape[2:]
    score_heads, total = score.shape[2], past + new
    keys = np.concatenate([past_key, key.reshape(batch, new, kv_num_heads, size).swapaxes(1, 2)], axis=2)
    values = np.concatenate([past_value, value.reshape(batch, new, kv_num_heads, size).swapaxes(1, 2)], axis=2)
    scores = np.concatenate([past_score, score.swapaxes(1, 2)], axis=2)
    queries = query.reshape(batch, new, num_heads, size).astype(np.float64)
    output = np.full(queries.shape, np.nan)
    for b, i, h in np.ndindex(batch, new, num_heads):
        by_key = scores[b, h * score_heads // num_heads]
        kv_head = h * kv_num_heads // num_heads
        kept = list(range(past + i + 1))
        if 0 < keep_window_size < total:
            kept = sorted(kept, key=lambda j: (-by_key[j], j))[:keep_window_size]
        kept = [j for j in kept if by_key[j] > NEG]
        if kept:
            logits = np.array([scale * (keys[b, kv_head, j] @ queries[b, i, h]) + by_key[j] for j in kept])
            weights = np.exp(logits - logits.max())
            output[b, i, h] = weights / weights.sum() @ values[b, kv_head, kept].astype(np.float64)
    return output.reshape(query.shape), keys, values, scores


def cdmoe(
    hidden: Array, scores_x: Array, scores_y: Array, down_embed: Array, up_embed: Array, *, num_experts_per_tok: int
) -> Array:
    """Shapes as in the specification."""
    output = np.zeros(hidden.shape)
    down_embed, up_embed = down_embed.astype(np.float64), up_embed.astype(np.float64)
    batch, tokens, routing_heads, keys = scores_x.shape
    for b, s, r in np.ndindex(batch, tokens, routing_heads):
        sums = {
            x * keys + y: float(scores_x[b, s, r, x]) + float(scores_y[b, s, r, y])
            for x, y in itertools.product(range(keys), repeat=2)
        }
        experts = sorted(sums, key=lambda expert: (-sums[expert], expert))[:num_experts_per_tok]
        weights = np.exp([sums[expert] - sums[experts[0]] for expert in experts])
        for expert, weight in zip(experts, weights / weights.sum(), strict=True):
            dot = down_embed[expert] @ hidden[b, s]
            output[b, s] += dot / (1 + np.exp(-dot)) * weight * up_embed[expert]
    return output
