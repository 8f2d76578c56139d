"""Several states in one call of the native decoder: each gets bit for bit what it gets alone."""

from __future__ import annotations

import numpy as np
import pytest
from doge_cpu import BAD_ARGUMENT, FLOAT32, INT8, SCREEN, TOO_LONG, UNSUPPORTED, CpuError, Request, run_together
from doge_runs import distinct_ids, left_padded
from random_doge import MOE
from test_cpu_stack import ROPES

LENGTH = 40
STARTS = (1, 30, 9, 20, 2, 14, 25)


def sequences(count, vocabulary=320):
    return distinct_ids(count, LENGTH, vocabulary)


def assert_alone_as_together(model, caches=(FLOAT32, INT8), steps=8, vocabulary=320):
    """Rows of different lengths are read, then go on together; some join later, some leave before."""
    ids = sequences(len(STARTS), vocabulary)
    kinds = [caches[i % len(caches)] for i in range(len(STARTS))]
    alone = [
        model.logits(ids[i : i + 1, : start + steps], chunks=[start, *[1] * steps], cache=kinds[i])[0, start:]
        for i, start in enumerate(STARTS)
    ]
    states = [model.state(1, kind) for kind in kinds]
    for i, state in enumerate(states):
        state.run(ids[i : i + 1, : STARTS[i]])
    done = [0] * len(states)
    for now in range(2 * steps):
        members = [i for i in range(len(states)) if i // 2 <= now and done[i] < steps]
        if not members:
            break
        calls = [Request.of_logits(states[i], ids[i : i + 1, STARTS[i] + done[i]][:, None]) for i in members]
        run_together(calls)
        for i, call in zip(members, calls, strict=True):
            np.testing.assert_array_equal(call.outputs["logits"][0, 0], alone[i][done[i]])
            done[i] += 1
    assert done == [steps] * len(states)
    assert [state.length for state in states] == [start + steps for start in STARTS]


@pytest.mark.parametrize("name", ["dense", "moe", "odd", "biases", "window"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_join_and_leave(library, random_module, packed, name, threads):
    changes = {
        "moe": MOE,
        "odd": {"hidden_size": 72, "intermediate_size": 50, "head_dim": 18, "vocab_size": 333},
        "biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "window": {"keep_window_size": 12},
    }.get(name, {})
    file = packed(random_module(**changes))
    for instruction_set in library.usable if threads == 1 else [None]:
        assert_alone_as_together(library.open(file, threads, instruction_set))


@pytest.mark.parametrize("name", ["dynamic", *ROPES])
def test_every_rope(library, random_module, packed, name):
    """Frequencies that follow the length are those of a row's own."""
    rope = (
        {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 24}
        if name == "dynamic"
        else ROPES[name]
    )
    module = random_module(rope_parameters={"rope_theta": 10000.0} | rope, num_hidden_layers=1)
    assert_alone_as_together(library.open(packed(module)))


@pytest.fixture
def model(library, random_module, packed):
    return library.open(packed(random_module()), 2)


def test_prompts_and_steps_in_one_call(model):
    """Rows of different numbers of new tokens, a padded batch among them, some with pieces of several of these."""
    ids = sequences(6)
    mask = left_padded(LENGTH, 0, 7, 3)

    def begun():
        states = [model.state(1), model.state(3, INT8), model.state(1, INT8), model.state(1)]
        states[1].run(ids[1:4, :10], mask[:, :10])
        states[3].run(ids[5:, :33])
        return states

    def requests(states):
        return [
            Request.of_logits(states[0], ids[:1]),
            Request.of_logits(states[1], ids[1:4, 10:], keep=2),
            Request.of_candidates(states[2], ids[4:5, :25], 7),
            Request.of_logits(states[3], ids[5:, 33:34]),
        ]

    together, alone = requests(begun()), requests(begun())
    run_together(together)
    for request in alone:
        run_together([request])
    for found, expected in zip(together, alone, strict=True):
        assert found.state.length == expected.state.length
        for name, wanted in expected.outputs.items():
            np.testing.assert_array_equal(found.outputs[name], wanted)


def test_more_tokens_than_fit_at_once(library, random_module, packed):
    """A long prompt is read in pieces, in the first of which the others' steps are."""
    changes = {"max_length": 700, "max_position_embeddings": 700, "num_hidden_layers": 1, "vocab_size": 700}
    model = library.open(packed(random_module(**changes, keep_window_size=500), 700), 2)
    ids = distinct_ids(3, 650, 700)
    states = [model.state(1, INT8) for _ in range(3)]
    states[1].run(ids[1:2, :300])  # behind so many keys threads share them
    together = [
        Request.of_logits(states[0], ids[:1], keep=600),
        Request.of_logits(states[1], ids[1:2, 300:301]),
        Request.of_logits(states[2], ids[2:, :40]),
    ]
    run_together(together)
    np.testing.assert_array_equal(together[0].outputs["logits"], model.state(1, INT8).run(ids[:1], keep=600))
    expected = model.logits(ids[1:2, :301], chunks=[300, 1], cache=INT8)[:, 300:]
    np.testing.assert_array_equal(together[1].outputs["logits"], expected)
    np.testing.assert_array_equal(together[2].outputs["logits"], model.logits(ids[2:, :40], cache=INT8))


@pytest.mark.parametrize("flags", [0, SCREEN])
def test_candidates_of_different_numbers(library, random_module, packed, flags):
    """Beside rows that want all logits, and one that wants nothing."""
    file = packed(random_module(tie_word_embeddings=False, vocab_size=1000, hidden_size=128))
    model, ids = library.open(file, 3, flags=flags), sequences(6, 1000)
    states = [model.state(1) for _ in range(6)]
    for i, state in enumerate(states):
        state.run(ids[i : i + 1, : 5 + i])
    expected = [library.open(file, 1).logits(ids[i : i + 1, : 6 + i], chunks=[5 + i, 1])[0, -1] for i in range(6)]
    counts = [1, 64, 0, 300, 5, -1]
    calls = [
        Request.of_candidates(state, ids[i : i + 1, 5 + i : 6 + i], counts[i])
        if counts[i] > 0
        else Request.of_logits(state, ids[i : i + 1, 5 + i : 6 + i])
        if counts[i] == 0
        else Request(state, ids[i : i + 1, 5 + i : 6 + i])
        for i, state in enumerate(states)
    ]
    run_together(calls)
    for i in (0, 1, 3, 4):
        order = np.argsort(-expected[i], kind="stable")[: counts[i]]
        np.testing.assert_array_equal(calls[i].outputs["candidates"][0], order)
        np.testing.assert_array_equal(calls[i].outputs["candidate_logits"][0], expected[i][order])
    np.testing.assert_array_equal(calls[2].outputs["logits"][0, 0], expected[2])


def test_after_an_error_every_state_is_as_it_was(library, random_module, packed, model):
    ids = sequences(3)
    states = [model.state(1, max_length=each) for each in (40, 10, 40)]
    for i, state in enumerate(states):
        state.run(ids[i : i + 1, : 8 + i])
    other = library.open(packed(random_module(**MOE))).state(1)

    def step(chosen, token=3):
        return [Request.of_logits(state, np.array([[token]])) for state in chosen]

    for calls, status, text in [
        (step([*states[:2], other]), BAD_ARGUMENT, "state 2 is one of another model than state 0"),
        (step([*states, states[0]]), BAD_ARGUMENT, "a state is there twice"),
        ([*step(states[:1]), *step(states[1:2], 320)], BAD_ARGUMENT, "state 1: token 320 is not in the vocabulary"),
        (
            [*step(states[:1]), Request.of_logits(states[1], ids[1:2, :2])],
            TOO_LONG,
            "state 1: 2 tokens behind 9 exceed the maximum length of 10",
        ),
    ]:
        with pytest.raises(CpuError, match=text) as caught:
            run_together(calls)
        assert caught.value.status == status
        assert [state.length for state in states] == [8, 9, 10]
    found = step(states)
    run_together(found)
    for i, call in enumerate(found):
        expected = model.logits(np.append(ids[i, : 8 + i], 3)[None], chunks=[8 + i, 1])[:, -1:]
        np.testing.assert_array_equal(call.outputs["logits"], expected)


def test_a_router_that_mixes_takes_one_state(library, random_module, packed):
    model = library.open(packed(random_module("reference", **MOE), per_token=False))
    requests = [Request.of_logits(model.state(1), np.array([[3]])) for _ in range(2)]
    with pytest.raises(CpuError, match="one state at a time") as caught:
        run_together(requests)
    assert caught.value.status == UNSUPPORTED
    run_together(requests[:1])
    assert np.isfinite(requests[0].outputs["logits"]).all()
