"""Exported graphs, run as their contracts say, against the module."""

from __future__ import annotations

import functools

import numpy as np
import one_thread
import pytest
import torch
from attention_graph import run_in_place
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_of, positions
from random_doge import CONFIG, MAX_LENGTH, MOE, random_model

WINDOW, TRAINED = CONFIG["keep_window_size"], CONFIG["max_position_embeddings"]
VARIANTS = {
    "dense": {"max_length": MAX_LENGTH},
    "never-selects": {"max_length": WINDOW},
    "moe": {"moe": True, "max_length": MAX_LENGTH},
    "moe-per-token": {"moe": True, "cdmoe_routing": "per-token", "max_length": MAX_LENGTH},
}
LONG = TRAINED + 3
EXTENTS = [
    *[(batch, new, 0) for batch in (1, 2, 3) for new in (1, 2, 7, LONG)],
    *[(batch, 1, past) for batch in (1, 2, 3) for past in (1, 2, 7, LONG)],
    *[(batch, new, past) for batch in (1, 3) for new, past in [(2, 1), (2, 2), (7, 13), (15, LONG), (LONG, 15)]],
]
"""(batch, new tokens, past): 0, 1, 2, odd and long in every axis; below and beyond window and trained length."""


@functools.cache
def module_for(variant):
    options = dict(VARIANTS[variant])
    model = random_model(num_hidden_layers=2, **(MOE if options.pop("moe", False) else {}))
    return module_of(model, **options)


@functools.cache
def open_session(folder):
    return one_thread.open_session(folder / "onnx" / "model.onnx")


def places(session, mask):
    """Position ids [B, S] of a graph: as they are fed, or where the kernel rotates, a token's place in the cache."""
    if any(value.name == "position_ids" for value in session.get_inputs()):
        return positions(mask)
    return np.tile(np.arange(mask.shape[1]), (len(mask), 1))


@torch.no_grad()
def truth(module, ids, mask, position_ids, past):
    """Logits and caches [(key, value, score)] before and after the tokens from index `past` on."""
    inputs = [torch.from_numpy(x) for x in (ids, mask, position_ids)]
    before = module(*(x[:, :past] for x in inputs))[1] if past else module.empty_cache(len(ids))
    logits, after = module(*(x[:, past:] for x in inputs), before)
    return logits.numpy(), *([[part.numpy() for part in parts] for parts in cache] for cache in (before, after))


def run(target, session, ids, mask, past, before):
    """Logits, and keys and values in turn."""
    new = {"input_ids": ids[:, past:], "position_ids": positions(mask)[:, past:]}
    caches = {
        f"past_key_values.{layer}.{name}": part
        for layer, parts in enumerate(before)
        for name, part in zip(("key", "value"), parts[:2], strict=True)
    }
    if target == "portable":
        every = {"num_logits_to_keep": np.array(0, np.int64)}
        return session.run(None, new | {"attention_mask": mask} | every | caches)
    width = next(value.shape[1] for value in session.get_inputs() if value.name == "past_scores")
    scores = np.concatenate([parts[2] for parts in before], axis=1)
    scores = scores.repeat(width // scores.shape[1], axis=1)  # for each query head where none is selected
    feeds = {name: np.ascontiguousarray(array) for name, array in (new | {"attention_mask": mask}).items()}
    return run_in_place(session, feeds | caches, scores)[:-1]


CASES = [
    (target, variant, *extents)
    for target in ("onnxruntime", "portable")
    for variant, options in VARIANTS.items()
    for extents in EXTENTS
    # Buffers and tables of the onnxruntime target hold so many tokens; the decoder refuses more.
    if target == "portable" or sum(extents[1:]) <= options["max_length"]
]


@pytest.mark.parametrize(("target", "variant", "batch", "new", "past"), CASES)
def test_every_extent_of_every_dynamic_axis(exported, target, variant, batch, new, past):
    """Left padding in rows after the first: of new tokens, and of cached ones."""
    if target == "onnxruntime" and batch > 1 and new > 1 and past:
        batch = 1  # what the attention kernel takes; the decoder runs row by row
    session = open_session(exported(target=target, **VARIANTS[variant]))
    length = past + new
    ids = distinct_ids(batch, length, seed=length)
    mask = left_padded(length, *[min(3 * row, length - 1) for row in range(batch)])
    expected, before, after = truth(module_for(variant), ids, mask, places(session, mask), past)
    logits, *present = run(target, session, ids, mask, past, before)
    real = mask == 1
    assert_equal_to_rounding(logits[real[:, past:]], expected[real[:, past:]], ONNXRUNTIME)
    rights = [part for parts in after for part in parts[:2]]
    for found, right in zip(present, rights, strict=True):
        assert_equal_to_rounding(found.swapaxes(1, 2)[real], right.swapaxes(1, 2)[real], ONNXRUNTIME)
