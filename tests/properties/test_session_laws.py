"""Laws of any weights, on exported folders through `session.logits`, at lengths and pieces that hypothesis chooses."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded
from hypothesis import given, settings
from hypothesis import strategies as st
from random_doge import CONFIG, MAX_LENGTH

import doge_export
from doge_export import DogeExportError

TRAINED = CONFIG["max_position_embeddings"]
KINDS = {"dense": {}, "moe-per-token": {"moe": True, "cdmoe_routing": "per-token"}}
few = settings(max_examples=25, derandomize=True, deadline=None, database=None)


@pytest.fixture(scope="module", params=[(target, kind) for target in ("onnxruntime", "portable") for kind in KINDS])
def session(request, exported):
    target, kind = request.param
    return doge_export.load(exported(target=target, **KINDS[kind]), threads=1)


@pytest.fixture(scope="module", params=["onnxruntime", "portable"])
def reference_session(request, exported):
    return doge_export.load(exported(target=request.param, moe=True), threads=1)


def cuts(length):
    """Lengths that add up to `length`."""
    places = st.sets(st.integers(1, length), max_size=8)
    return places.map(lambda places: np.diff([0, *sorted(places - {length}), length]).tolist())


lengths = st.integers(1, TRAINED)
"""Past the trained length, dynamic NTK turns every piece by the length so far, in transformers too."""
pieces = lengths.flatmap(cuts)
seeds = st.integers(0, 1000)


@few
@given(chunks=pieces, seed=seeds)
def test_pieces_equal_one_shot(session, chunks, seed):
    ids = distinct_ids(1, sum(chunks), seed=seed)
    assert_equal_to_rounding(session.logits(ids, chunks=chunks), session.logits(ids), ONNXRUNTIME)


@few
@given(chunks=pieces, seed=seeds, data=st.data())
def test_a_later_token_changes_no_earlier_logit(session, chunks, seed, data):
    ids = distinct_ids(1, sum(chunks), seed=seed)
    place = data.draw(st.integers(0, sum(chunks) - 1))
    changed = ids.copy()
    changed[0, place] = (changed[0, place] + data.draw(st.integers(1, 319))) % 320
    before, after = session.logits(ids, chunks=chunks), session.logits(changed, chunks=chunks)
    np.testing.assert_array_equal(before[:, :place], after[:, :place])
    assert (before[:, place] != after[:, place]).any()


@few
@given(paddings=st.lists(st.integers(0, TRAINED - 1), min_size=1, max_size=3), chunks=cuts(TRAINED), seed=seeds)
def test_neighbours_and_padding_change_nothing(session, paddings, chunks, seed):
    ids, mask = distinct_ids(len(paddings), TRAINED, seed=seed), left_padded(TRAINED, *paddings)
    together = session.logits(ids, mask, chunks)
    for row, begin in enumerate(paddings):
        assert_equal_to_rounding(
            together[row : row + 1, begin:], session.logits(ids[row : row + 1, begin:]), ONNXRUNTIME
        )


@few
@given(length=st.integers(1, MAX_LENGTH), batch=st.integers(1, 3), seed=seeds)
def test_the_same_question_gets_the_same_answer(session, length, batch, seed):
    """Whatever was asked before, to the last bit."""
    ids = distinct_ids(batch, length, seed=seed)
    first = session.logits(ids)
    session.logits(distinct_ids(2, 7, seed=seed + 1), chunks=[3, 4])
    np.testing.assert_array_equal(session.logits(ids), first)


SEEN = 1e-3
"""A change of logits that is no rounding, which stays below 1e-5; one expert of little weight moves them by 0.01."""


@few
@given(seed=seeds)
def test_reference_routing_obeys_none_of_these(reference_session, seed):
    """As documented: tokens that are read together route one another, later ones and neighbours included."""
    ids = distinct_ids(2, 24, seed=seed)
    together = reference_session.logits(ids)
    alone = reference_session.logits(ids[:1])
    assert np.abs(together[:1] - alone).max() > SEEN
    assert np.abs(reference_session.logits(ids[:1], chunks=[12, 12]) - alone).max() > SEEN
    changed = ids[:1].copy()
    changed[0, -1] = (changed[0, -1] + 1) % 320
    assert np.abs(reference_session.logits(changed) - alone)[0, :-1].max() > SEEN


@few
@given(length=st.integers(2, 20), seed=seeds)
def test_reference_routing_one_token_at_a_time_is_causal(reference_session, length, seed):
    ids = distinct_ids(1, length, seed=seed)
    one_by_one = functools.partial(reference_session.logits, chunks=[1] * length)
    changed = ids.copy()
    changed[0, -1] = (changed[0, -1] + 1) % 320
    np.testing.assert_array_equal(one_by_one(ids)[:, :-1], one_by_one(changed)[:, :-1])


@few
@given(excess=st.integers(1, 1000), batch=st.integers(1, 3))
def test_more_than_the_export_holds_is_refused(session, excess, batch):
    with pytest.raises(DogeExportError, match=f"{MAX_LENGTH + excess} tokens .*{MAX_LENGTH}"):
        session.logits(np.zeros((batch, MAX_LENGTH + excess), np.int64))


@pytest.mark.parametrize("first", [30, TRAINED, TRAINED + 1, MAX_LENGTH - 2])
def test_what_is_reused_changes_no_answer(session, first):
    """A prompt read whole, with scaled RoPE, is of no use to a shorter one that begins like it."""
    ids = distinct_ids(1, MAX_LENGTH)[0].tolist()
    _, turn = session._context.read([ids[:first]])
    session._context.append(turn, np.array([[ids[first]]]))
    for length in (20, first + 2):
        reused, fresh = (session._context.read([ids[:length]], reuse)[0][0].logits().copy() for reuse in (True, False))
        assert_equal_to_rounding(reused, fresh, ONNXRUNTIME)
