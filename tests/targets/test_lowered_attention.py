"""DynamicMaskAttention as function body, as GroupQueryAttention and in standard ops, against loops in float64."""

from __future__ import annotations

import functools

import naive_operators
import numpy as np
import pytest
from attention_graph import AttentionGraph, run_in_place
from one_thread import open_session

from doge_export.targets.passes.group_query_attention import GroupQueryAttention
from doge_export.targets.passes.standard_attention import StandardAttention
from doge_export.targets.target import Traits

HEADS = {"groups": (4, 2), "no-groups": (2, 2), "one-kv-head": (4, 1), "one-head": (1, 1)}
LOWERINGS = {
    "canonical": None,
    "standard": StandardAttention,
    "in-place": functools.partial(GroupQueryAttention, Traits()),
    "in-place-fully-masked-rows": functools.partial(GroupQueryAttention, Traits(fully_masked_rows=True)),
}
WINDOWS, SCORE_HEADS = (0, 1, 5, 100), ("1", "Hkv", "Hq")
SHAPES = [
    # By default every pair of settings together, in a third of all combinations.
    pytest.param(name, scores, window, marks=() if (i + j + k) % 3 == 0 else pytest.mark.slow)
    for i, name in enumerate(HEADS)
    for j, scores in enumerate(SCORE_HEADS)
    for k, window in enumerate(WINDOWS)
]
EXTENTS = [(1, 0), (2, 0), (9, 0), (1, 1), (1, 2), (1, 13), (2, 2), (5, 7)]
"""New tokens and past."""


@functools.cache
def lowered(lowering, heads, score_heads, window):
    """The graph, and a session of it once lowered."""
    query_heads, kv_heads = HEADS[heads]
    graph = AttentionGraph(query_heads, kv_heads, {"1": 1, "Hkv": kv_heads, "Hq": query_heads}[score_heads], window)
    return graph, lowered_session(lowering, graph)


@functools.cache
def case(heads, score_heads, window, *extents):
    """Inputs, and the naive operator's output and caches, which are the same for every lowering."""
    graph, _ = lowered("canonical", heads, score_heads, window)
    inputs = graph.inputs(*extents)
    return inputs, graph.expected(inputs)


def lowered_session(lowering, graph):
    if LOWERINGS[lowering] is not None:
        LOWERINGS[lowering]()(graph.model)
    return open_session(graph.model)


def run(lowering, graph, model, inputs):
    """Output and what there is of caches, in the naive operator's shapes."""
    feeds = graph.feeds(inputs, whole_mask=lowering != "canonical")
    if lowering == "canonical":
        return model.run(None, feeds | {"past_key_values.0.score": inputs["past_score"]})
    if lowering == "standard":
        return model.run(None, feeds)
    return run_in_place(model, feeds, inputs["past_score"])


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("heads", "score_heads", "window"), SHAPES)
def test_lowered_attention(lowering, heads, score_heads, window):
    """No past, one, two, odd, long; alone, in a batch, and with padding among new and cached tokens."""
    graph, model = lowered(lowering, heads, score_heads, window)
    for new, past in EXTENTS:
        # The kernel of the in-place target takes several new tokens behind a past for one row only.
        batches = (1,) if lowering.startswith("in-place") and past and new > 1 else (1, 2, 3)
        for batch in batches:
            for padding in {0, (past + new) // 2}:
                inputs, (output, *caches) = case(heads, score_heads, window, batch, new, past, padding)
                found, *present = run(lowering, graph, model, inputs)
                defined = np.isfinite(output)
                assert np.isfinite(found).all()
                assert defined.all() == (padding <= past)
                np.testing.assert_allclose(found[defined], output[defined], rtol=0, atol=5e-6)
                assert len(present) == (2 if lowering == "standard" else 3)
                for actual, right in zip(present, caches, strict=False):
                    is_token = right > naive_operators.NEG  # the in-place target marks padding elsewhere
                    np.testing.assert_allclose(actual[is_token], right[is_token], rtol=1e-6)


@pytest.mark.parametrize("window", [1, 7, 40])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_of_equal_scores_the_earlier_key_is_kept(lowering, window):
    """Where a sort that promises no order among equals would show, too: many keys, few and most of them kept."""
    graph = AttentionGraph(4, 2, 2, window, equal_scores=True)
    model = lowered_session(lowering, graph)
    for new, past in [(70, 0), (1, 70), (9, 61)]:
        inputs = graph.inputs(1, new, past)
        found = run(lowering, graph, model, inputs)[0]
        np.testing.assert_allclose(found, graph.expected(inputs)[0], rtol=0, atol=5e-6)
