"""Our module against transformers' eager model, float32, the same weights."""

from __future__ import annotations

import pytest
import torch
from doge_runs import (
    assert_equal_to_rounding,
    distinct_ids,
    left_padded,
    module_logits,
    module_of,
    transformers_logits,
)
from random_doge import CONFIG, MOE, random_model

WINDOW, TRAINED = CONFIG["keep_window_size"], CONFIG["max_position_embeddings"]
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)]}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 12},
    "longrope": FACTORS | {"original_max_position_embeddings": 24, "factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
SHAPES = {
    "dense": {},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "head-dim": {"head_dim": 24},
    "one-kv-head": {"num_key_value_heads": 1},
    "no-groups": {"num_key_value_heads": 4},
    "large-eps": {"rms_norm_eps": 0.1},
    "one-layer": {"num_hidden_layers": 1},
    "moe": MOE,
    "moe-tied-biases": MOE | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "moe-normalised": MOE | {"norm_topk_prob": True},
    "moe-unreached-experts": MOE | {"num_experts": 40},
}


def pair(**changes):
    model = random_model(**changes)
    return model, module_of(model)


def check(model, module, *inputs, **options):
    """A padding row's logits are nobody's, so real positions alone are compared."""
    found, expected = module_logits(module, *inputs, **options), transformers_logits(model, *inputs, **options)
    real = slice(None) if len(inputs) == 1 else inputs[1] == 1
    assert_equal_to_rounding(found[real], expected[real])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + 13])
def test_prefill(changes, length):
    """Up to the window and beyond it."""
    check(*pair(**changes), distinct_ids(2, length))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_cached(changes):
    """A prompt in two pieces, then steps, past the window."""
    check(*pair(**changes), distinct_ids(2, 30), chunks=[9, 7, *[1] * 14])


@pytest.mark.parametrize("moe", [{}, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("chunks", [None, [10, 3, 1, 1, 13], [15, *[1] * 13]], ids=["whole", "pieces", "steps"])
@pytest.mark.parametrize("window", [8, 100], ids=["selects", "keeps-all"])
def test_left_padding(moe, chunks, window):
    """Reference routing reads padding rows, so these must be transformers' own, too."""
    check(*pair(keep_window_size=window, **moe), distinct_ids(3, 28), left_padded(28, 0, 5, 9), chunks=chunks)


@pytest.mark.parametrize("rope_type", ROPES)
@pytest.mark.parametrize("length", [24, TRAINED, TRAINED + 22])
def test_rope_types_in_prefill(rope_type, length):
    check(
        *pair(rope_parameters={"rope_type": rope_type, "rope_theta": 1e4} | ROPES[rope_type]), distinct_ids(1, length)
    )


@pytest.mark.parametrize("rope_type", ROPES)
def test_rope_types_step_by_step(rope_type):
    """Across the trained length."""
    model, module = pair(rope_parameters={"rope_type": rope_type, "rope_theta": 1e4} | ROPES[rope_type])
    check(model, module, distinct_ids(1, TRAINED + 12), chunks=[20, *[1] * (TRAINED - 8)])


def test_dynamic_scaling_of_a_padded_batch_beyond_the_trained_length():
    """The longest row decides for all of them."""
    model, module = pair(keep_window_size=100)
    check(model, module, distinct_ids(2, TRAINED + 10), left_padded(TRAINED + 10, 0, 20))


@pytest.mark.parametrize("moe", [{}, MOE], ids=["dense", "moe"])
def test_gradients(moe):
    """Of every parameter: the module is trained with, too."""
    model, module = pair(**moe)
    module.train()
    ids = torch.from_numpy(distinct_ids(2, WINDOW + 10))
    weights = torch.randn(2, WINDOW + 10, CONFIG["vocab_size"], generator=torch.Generator().manual_seed(0))
    # The oracle's parameters are the module's, so the gradients are collected apart.
    expected = torch.autograd.grad((model(ids).logits * weights).sum(), list(model.parameters()))
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    logits, _ = module(ids, torch.ones_like(ids), torch.arange(WINDOW + 10)[None].expand(2, -1))
    found = torch.autograd.grad((logits * weights).sum(), list(module.parameters()))
    names = [name for name, _ in module.named_parameters()]
    by_name = dict(zip((name for name, _ in model.named_parameters()), expected, strict=True))
    assert sorted(names) == sorted(by_name)
    for name, gradient in zip(names, found, strict=True):
        assert by_name[name].abs().max() > 0
        assert (gradient - by_name[name]).abs().max() <= 1e-4 * by_name[name].abs().max(), name
