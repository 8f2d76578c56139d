"""A bounded cache gives the logits of an unbounded one, and holds exactly the keys that a later token may attend to."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from composition_runs import VOCABULARY, run
from compositions import MIXING, copy_of, random_module
from doge_runs import left_padded
from one_thread import open_session

from doge_export.checkpoint.architecture import Moe, Rope
from doge_export.graph import trace
from doge_export.runtime.decoders.bounded import BoundedDecoder
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.runtime.decoders.growing import GrowingDecoder, GrowingScoresDecoder
from doge_export.targets import TARGETS, Traits, lower

LIMITS = SequenceLimits(2**14, 2**14)
LARGEST = 2e-5
"""Largest difference of the logits, in their standard deviations."""

SHAPES = {
    "one head of keys": {"num_key_value_heads": 1, "score_heads": 1, "keep_window_size": 16},
    "two heads": {"keep_window_size": 16},
    "four heads, no groups": {"num_key_value_heads": 4, "score_heads": 4, "keep_window_size": 16},
    "three heads of six": {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "score_heads": 3,
        "keep_window_size": 16,
    },
    "linear scores": {"score": "linear", "keep_window_size": 16},
    "experts": {"moe": Moe(36, 3, variant="M7-fixed"), "keep_window_size": 16},
}


def chunks_of(size: int, length: int) -> tuple[int, ...]:
    """Pieces of `size` tokens, and the rest."""
    return (*[size] * (length // size), *([length % size] if length % size else []))


def built(changes, routing="reference"):
    """The bounded and the portable and the canonical decoder of a random model."""
    model = trace(random_module(changes, cdmoe_routing=routing))
    decoders = []
    for target, kind, bounded in (
        ("portable", BoundedDecoder, True),
        ("portable", GrowingDecoder, False),
        ("canonical", GrowingScoresDecoder, False),
    ):
        graph = copy_of(model)
        lower(graph, TARGETS[target], Traits(bounded=bounded))
        decoders.append(kind(open_session(graph), LIMITS))
    return decoders


@functools.cache
def shape(name):
    return built(SHAPES[name])


def assert_equal(found, expected):
    assert np.abs(found - expected).max() <= LARGEST * expected.std()


def best(scores, window):
    """Indices of the `window` best of scores [T], in ascending order; the lower one of equals."""
    return np.sort(np.lexsort((np.arange(len(scores)), -scores))[:window])


def assert_keeps_best(bounded, canonical, window):
    """Compare every slot with the key, value of the token that must be in it; all keys differ."""
    every = dict(zip(canonical._pasts, (cache.numpy() for cache in canonical._caches), strict=True))
    for layer, (keys, values) in enumerate(bounded.cache_snapshot()):
        scores = every[f"past_key_values.{layer}.score"]
        assert keys.shape[2] == min(window, scores.shape[2])
        for row, head in itertools.product(*map(range, scores.shape[:2])):
            kept = best(scores[row, head], window)
            for slots, part in ((keys, "key"), (values, "value")):
                wanted = every[f"past_key_values.{layer}.{part}"][row, head][kept]
                np.testing.assert_allclose(slots[row, head], wanted, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", SHAPES)
def test_pieces_of_any_size(name, size):
    bounded, portable, canonical = shape(name)
    ids = np.random.default_rng(size).permutation(VOCABULARY)[None, :80]
    chunks = chunks_of(size, 64) + (1,) * 16
    assert_equal(run(bounded, ids, chunks=chunks), run(portable, ids))
    run(canonical, ids, chunks=chunks)  # adds up in another order: two unbounded graphs differ by 1.9e-5, too
    assert_keeps_best(bounded, canonical, 16)


@pytest.mark.parametrize("chunks", [(64,), chunks_of(7, 64), (40, *[1] * 24)], ids=["whole", "7", "steps"])
def test_left_padding(chunks):
    bounded, portable, canonical = shape("two heads")
    mask = left_padded(64, 0, 5, 33, 60)
    ids = np.stack([np.random.default_rng(row).permutation(VOCABULARY)[:64] for row in range(4)])
    found = run(bounded, ids, mask, chunks)
    assert_equal(found[mask == 1], run(portable, ids, mask)[mask == 1])
    run(canonical, ids, mask, chunks)
    assert_keeps_best(bounded, canonical, 16)


def test_equal_scores_keep_the_lower_index():
    """In layer 0 a score depends on the token alone; of four tokens, nearly all keys tie with many others."""
    bounded, _, canonical = shape("two heads")
    ids = np.random.default_rng(0).integers(0, 4, (1, 64))
    found = run(bounded, ids, chunks=(1,) * 64)
    assert_equal(found, run(canonical, ids, chunks=(1,) * 64))
    assert_keeps_best(bounded, canonical, 16)


def test_scaled_angles_step_by_step():
    """Dynamic NTK turns each run by the longest position so far, which the positions tell and the cache does not."""
    bounded, portable, _ = built(
        {"keep_window_size": 16, "rope": Rope("dynamic", factor=4.0)} | {"max_position_embeddings": 32}
    )
    ids = np.random.default_rng(0).permutation(VOCABULARY)[None, :80]
    chunks = (40, *[1] * 40)
    assert_equal(run(bounded, ids, chunks=chunks), run(portable, ids, chunks=chunks))


def test_experts_that_mix_tokens():
    """The routing mixes the tokens of a run, and so does the unbounded graph where it is fed in the same pieces."""
    bounded, portable, _ = built(MIXING["M7"] | {"keep_window_size": 16})
    ids = np.random.default_rng(0).permutation(VOCABULARY)[None, :64]
    chunks = chunks_of(9, 64)
    assert_equal(run(bounded, ids, chunks=chunks), run(portable, ids, chunks=chunks))


def close_calls(canonical, window):
    """Tokens [T] for which, in some layer and head, the last key kept and the first one left out are nearly equal.

    Beyond the first layer scores are computed of hidden states that each graph rounds in its own way, so among
    thousands of keys a few such pairs change places, and a logit moves by a thousandth.
    """
    scores = [
        cache.numpy()[0]
        for name, cache in zip(canonical._pasts, canonical._caches, strict=True)
        if name.endswith(".score")
    ]
    close = np.zeros(scores[0].shape[-1], bool)
    for row in np.concatenate(scores):
        for token in range(window, len(close)):
            last, first = -np.partition(-row[: token + 1], (window - 1, window))[window - 1 : window + 1]
            close[token] |= last - first <= 1e-6 * abs(last)
    return close


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 7, 64, 512])
@pytest.mark.parametrize("window", [64, 2048])
def test_four_windows(window, size):
    changes = {"keep_window_size": window, "vocab_size": 2 * window * 4}
    if window == 2048 and size < 64:
        pytest.skip("thousands of steps over thousands of keys")
    bounded, portable, canonical = built(changes)
    ids = np.random.default_rng(size).permutation(changes["vocab_size"])[None, : 4 * window]
    chunks = chunks_of(size, 4 * window)
    found, expected = run(bounded, ids, chunks=chunks), run(portable, ids, chunks=chunks)
    run(canonical, ids, chunks=chunks_of(512, 4 * window))
    clear = ~close_calls(canonical, window)
    assert clear.mean() > 0.95
    assert_equal(found[:, clear], expected[:, clear])
    assert_keeps_best(bounded, canonical, window)


def test_every_key_differs():
    """`assert_keeps_best` tells tokens apart by their keys."""
    _, _, canonical = shape("two heads")
    run(canonical, np.random.default_rng(0).permutation(VOCABULARY)[None, :64])
    for keys, _ in canonical.cache_snapshot():
        distances = np.abs(keys[:, :, :, None] - keys[:, :, None]).max(-1) + 10 * np.eye(64)
        assert distances.min() > 1e-2
