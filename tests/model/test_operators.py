"""The PyTorch operators against the specification's rules written as loops."""

from __future__ import annotations

import naive_operators
import numpy as np
import pytest
import torch

from doge_export.model import operators

HEADS, KV_HEADS, SIZE = 4, 2, 8


def attention_inputs(batch, new, past, score_heads, *, seed=0, padding=(), heads=HEADS, kv_heads=KV_HEADS, levels=None):
    """Arrays in the operator's order. `padding` are key indices that are padding in row 0; `levels` makes ties."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    scores = random.uniform(0.5, 4.0, size=(batch, score_heads, past + new)).astype(np.float32)
    if levels:
        scores = random.integers(levels, size=scores.shape).astype(np.float32)
    scores[0, :, list(padding)] = operators.NEG
    return {
        "query": normal(batch, new, heads * SIZE),
        "key": normal(batch, new, kv_heads * SIZE),
        "value": normal(batch, new, kv_heads * SIZE),
        "score": np.ascontiguousarray(scores[:, :, past:].swapaxes(1, 2)),
        "past_key": normal(batch, kv_heads, past, SIZE),
        "past_value": normal(batch, kv_heads, past, SIZE),
        "past_score": np.ascontiguousarray(scores[:, :, :past]),
    }


def check_attention(inputs, keep_window_size, *, heads=HEADS, kv_heads=KV_HEADS):
    attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": SIZE**-0.5,
        "keep_window_size": keep_window_size,
    }
    found = operators.dynamic_mask_attention(*(torch.from_numpy(x) for x in inputs.values()), **attributes)
    output, *present = naive_operators.dynamic_mask_attention(**inputs, **attributes)
    actual = found[0].numpy()
    assert np.isfinite(actual).all()
    defined = np.isfinite(output)
    np.testing.assert_allclose(actual[defined], output[defined], rtol=0, atol=2e-6)
    for part, expected in zip(found[1:], present, strict=True):
        np.testing.assert_array_equal(part.numpy(), expected)
    return defined


@pytest.mark.parametrize("score_heads", [1, KV_HEADS, HEADS])
@pytest.mark.parametrize("keep_window_size", [0, 1, 3, 9, 10])
@pytest.mark.parametrize(("new", "past"), [(9, 0), (1, 8), (4, 5), (1, 0)])
def test_attention(score_heads, keep_window_size, new, past):
    """w = 0, 1, below T, equal to T and above it; no past, S = 1, both."""
    assert check_attention(attention_inputs(2, new, past, score_heads), keep_window_size).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (6, 1)])
@pytest.mark.parametrize("per_key_value_head", [True, False])
def test_attention_head_counts(heads, kv_heads, per_key_value_head):
    counts = {"heads": heads, "kv_heads": kv_heads}
    check_attention(attention_inputs(2, 3, 4, kv_heads if per_key_value_head else heads, **counts), 4, **counts)


@pytest.mark.parametrize("keep_window_size", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_of_equal_scores_the_earlier_key_is_kept(keep_window_size, seed):
    check_attention(attention_inputs(2, 6, 3, KV_HEADS, seed=seed, levels=2), keep_window_size)


def test_the_tie_rule_decides():
    """With every score equal the first w keys are kept: keys after them change nothing."""
    inputs = attention_inputs(1, 6, 0, KV_HEADS, levels=1)
    check_attention(inputs, 2)
    inputs["value"][:, 2:] += 100.0
    check_attention(inputs, 2)


@pytest.mark.parametrize("keep_window_size", [0, 1, 4])
@pytest.mark.parametrize("past", [0, 3])
def test_padding_is_left_out_and_its_own_rows_stay_finite(keep_window_size, past):
    inputs = attention_inputs(2, 5, past, KV_HEADS, padding=range(past + 2))
    defined = check_attention(inputs, keep_window_size)
    assert not defined[0, :2].any() and defined[0, 2:].all() and defined[1].all()


@pytest.mark.parametrize("keep_window_size", [0, 3])
def test_a_row_of_padding_alone_is_finite(keep_window_size):
    assert not check_attention(attention_inputs(1, 5, 2, KV_HEADS, padding=range(7)), keep_window_size).any()


def test_large_scores_do_not_overflow():
    """exp(A * softplus(.)) reaches far beyond what exp in float32 can take."""
    inputs = attention_inputs(1, 5, 3, KV_HEADS)
    inputs["past_score"] *= 1e4
    inputs["score"] *= 1e4
    check_attention(inputs, 4)


def cdmoe_inputs(tokens, routing_heads, keys, experts, *, levels=None, seed=0, hidden=8):
    random = np.random.default_rng(seed)

    def scores():
        if levels:
            return random.integers(levels, size=(2, tokens, routing_heads, keys)).astype(np.float32)
        return random.normal(size=(2, tokens, routing_heads, keys)).astype(np.float32)

    return {
        "hidden": random.normal(size=(2, tokens, hidden)).astype(np.float32),
        "scores_x": scores(),
        "scores_y": scores(),
        "down_embed": random.normal(size=(experts, hidden)).astype(np.float32),
        "up_embed": random.normal(size=(experts, hidden)).astype(np.float32),
    }


def check_cdmoe(inputs, num_experts_per_tok):
    found = operators.cdmoe(*(torch.from_numpy(x) for x in inputs.values()), num_experts_per_tok)
    expected = naive_operators.cdmoe(**inputs, num_experts_per_tok=num_experts_per_tok)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("num_experts_per_tok", range(1, 10))
@pytest.mark.parametrize("routing_heads", [1, 3])
def test_cdmoe_takes_any_number_of_pairs(num_experts_per_tok, routing_heads):
    check_cdmoe(cdmoe_inputs(5, routing_heads, keys=3, experts=9), num_experts_per_tok)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(("keys", "experts"), [(1, 1), (1, 3), (2, 7), (5, 30)])
def test_cdmoe_leaves_experts_beyond_the_square_alone(tokens, keys, experts):
    check_cdmoe(cdmoe_inputs(tokens, 2, keys, experts), 1)


@pytest.mark.parametrize("num_experts_per_tok", [1, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_cdmoe_takes_the_lower_expert_of_equal_sums(num_experts_per_tok, seed):
    check_cdmoe(cdmoe_inputs(4, 2, keys=3, experts=9, levels=2, seed=seed), num_experts_per_tok)


def test_operators_are_sound_for_tracing_and_training():
    """Schema, fake tensors, autograd registration and AOT dispatch, as torch checks custom operators."""
    attention = [torch.from_numpy(x) for x in attention_inputs(2, 3, 4, KV_HEADS).values()]
    for tensor in attention:
        tensor.requires_grad_()
    torch.library.opcheck(operators.dynamic_mask_attention, (*attention, HEADS, KV_HEADS, 0.5, 5))
    experts = [torch.from_numpy(x).requires_grad_() for x in cdmoe_inputs(3, 2, 3, 9).values()]
    torch.library.opcheck(operators.cdmoe, (*experts, 4))
