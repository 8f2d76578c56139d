"""Angles of every RoPE type against transformers' rotary module."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import DogeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.doge.modeling_doge import DogeRotaryEmbedding

from doge_export.checkpoint.config import parse_todays_config
from doge_export.model.rope import RotaryEmbedding

TRAINED = 48
SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 24,
}
ROPES = {
    "default": {"rope_type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "yarn-long": YARN | {"original_max_position_embeddings": 4096},
    "yarn-untruncated": YARN | {"original_max_position_embeddings": 4096, "truncate": False},
    "yarn-betas": YARN | {"original_max_position_embeddings": 4096, "beta_fast": 200, "beta_slow": 8},
    "yarn-attention-factor": YARN | {"attention_factor": 0.7},
    "yarn-mscale": YARN | {"mscale": 0.8, "mscale_all_dim": 1.3},
    "yarn-factor-from-lengths": YARN | {"factor": None},
    "longrope": LONGROPE | {"factor": 2.0},
    "longrope-factor-from-lengths": LONGROPE,
    "longrope-attention-factor": LONGROPE | {"factor": 2.0, "attention_factor": 1.7},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    "proportional-factor": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0},
}


def pair(name, max_length=2**31):
    config = DogeConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": 10000.0} | ROPES[name],
    )
    architecture = parse_todays_config(json.loads(config.to_json_string(use_diff=False)))
    return RotaryEmbedding(architecture, max_length), DogeRotaryEmbedding(config)


def check(ours, theirs, position_ids):
    found = ours(position_ids)
    expected = theirs(torch.zeros(1), position_ids)
    for part, whole in zip(found, expected, strict=True):
        assert torch.equal(whole[..., :8], whole[..., 8:])
        torch.testing.assert_close(part, whole[..., :8], rtol=0, atol=1e-5)


def test_every_type_of_transformers_is_covered():
    assert {rope["rope_type"] for rope in ROPES.values()} == {"default", *ROPE_INIT_FUNCTIONS}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("length", [1, TRAINED // 2, TRAINED // 2 + 1, TRAINED, TRAINED + 1, 3 * TRAINED])
def test_prefill(name, length):
    """From one position to three times the trained length, both sides of each threshold among them."""
    ours, theirs = pair(name)
    check(ours, theirs, torch.arange(length)[None])


@pytest.mark.parametrize("name", ROPES)
def test_step_by_step(name):
    """A fresh transformers module fed a growing sequence: its memory of the longest length is then that of the call."""
    ours, theirs = pair(name)
    for position in range(2 * TRAINED):
        check(ours, theirs, torch.tensor([[position]]))


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_the_longest_row_of_a_batch_decides(name):
    ours, theirs = pair(name)
    rows = torch.stack([torch.arange(20), torch.arange(TRAINED, TRAINED + 20)])
    check(ours, theirs, rows)
    assert not torch.allclose(ours(rows)[0][0], ours(rows[:1])[0][0], atol=1e-3)


@pytest.mark.parametrize("name", ROPES)
def test_a_length_that_never_scales_gives_the_same_angles(name):
    """With a small max_length the frequencies are constants, and equal up to that length."""
    free, _ = pair(name)
    limit = 24 if "longrope" in name else TRAINED
    bounded, _ = pair(name, max_length=limit)
    assert bounded.scales_beyond is None
    assert (free.scales_beyond is None) is (name != "dynamic" and "longrope" not in name)
    for found, expected in zip(bounded(torch.arange(limit)[None]), free(torch.arange(limit)[None]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
