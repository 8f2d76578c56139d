"""What transformers' models of other tasks answer, and texts to ask of them."""

from __future__ import annotations

import numpy as np
import torch
from doge_runs import left_padded
from random_doge import CONFIG, MAX_LENGTH

FEATURES, CLASSES, WRITING = "feature-extraction", "text-classification", "text-generation"
TRAINED = CONFIG["max_position_embeddings"]
TEXTS = [
    "Once upon a time a small dog named Rex found a red ball in the garden.",
    "Hey!",
    "What is the colour of the ball?",
    "北京 👍🏽",
    "x",
    "Rex was happy, " * 4,
]
"""Of very different lengths, with words that come twice. Two equal tokens have equal scores in the first layer, and
which of them a token keeps is open, so wherever these texts are compared the model keeps all keys (`WIDE`)."""
WIDE = {"keep_window_size": MAX_LENGTH}


@torch.no_grad()
def theirs(model, ids, mask=None):
    """transformers' hidden states or logits, from a rotary module that no earlier run has touched."""
    inner = getattr(model, "model", model)
    inner.rotary_emb = type(inner.rotary_emb)(inner.config)
    output = model(torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask), use_cache=False)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()


def assert_close(actual, expected):
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1
    assert np.abs(actual - expected).max() <= 1e-4


def right_padded(length, *padding):
    return left_padded(length, *padding)[:, ::-1].copy()
