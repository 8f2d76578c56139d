"""Decoders that read together, and the server's lanes of them: each answer is the one that it is alone."""

from __future__ import annotations

import numpy as np
import pytest
from doge_runs import assert_equal_to_rounding, distinct_ids

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.manifest import read_manifest
from doge_export.runtime.loading import open_decoder
from doge_export.runtime.native.interface import NativeState
from doge_export.serve.together import TogetherLanes

IDS = distinct_ids(5, 40)
PROMPTS = [list(map(int, row[:length])) for row, length in zip(IDS, (3, 17, 1, 30, 9), strict=True)]
STEPS = 8


@pytest.fixture(params=["dense", "moe"])
def decoder(request, exported, native_library):
    folder = exported(moe=request.param == "moe", cdmoe_routing="per-token")
    return open_decoder(folder, read_manifest(folder), threads=2, backend="native")


@pytest.fixture
def runs(monkeypatch):
    """Numbers of states of each run that several take together."""
    made = []
    run = NativeState.run_together

    def counted(states, calls):
        made.append(len(states))
        run(states, calls)

    monkeypatch.setattr(NativeState, "run_together", staticmethod(counted))
    return made


def answer_alone(decoder, prompt, count=STEPS):
    decoder.reset()
    (prediction,) = decoder.predict(np.array([prompt]))
    logits, tokens = [prediction.logits().copy()], [prediction.argmax()]
    while len(tokens) < count:
        (prediction,) = decoder.predict(np.array([[tokens[-1]]]))
        logits.append(prediction.logits().copy())
        tokens.append(prediction.argmax())
    return tokens, logits


def advance(answers, found):
    for lane, prediction in found.items():
        answers[lane][1].append(prediction.logits().copy())
        answers[lane][0].append(prediction.argmax())


def assert_answers(answers, expected):
    for (tokens, logits), (wanted, wanted_logits) in zip(answers, expected, strict=True):
        assert tokens == wanted
        np.testing.assert_array_equal(logits, wanted_logits)


def test_decoders_predict_together(decoder, runs):
    expected = [answer_alone(decoder, prompt) for prompt in PROMPTS]
    forks = [decoder.fork() for _ in PROMPTS]
    assert decoder.reads_together
    answers = [([], []) for _ in forks]
    advance(answers, dict(enumerate(decoder.predict_together(forks, [np.array([prompt]) for prompt in PROMPTS]))))
    for _ in range(STEPS - 1):
        ids = [np.array([[tokens[-1]]]) for tokens, _ in answers]
        advance(answers, dict(enumerate(decoder.predict_together(forks, ids))))
    assert_answers(answers, expected)
    assert runs == [len(PROMPTS)] * STEPS


def test_after_an_error_nobody_has_read(decoder, monkeypatch):
    forks = [decoder.fork() for _ in range(3)]
    for fork, prompt in zip(forks, PROMPTS, strict=False):
        fork.predict(np.array([prompt]))
    lengths = [fork.length for fork in forks]
    step = [np.array([[1]])] * 3
    for wrong, text in [
        ([*step[:2], np.array([[10**6]])], "token id 1000000 is out of range"),
        ([*step[:2], np.ones((1, 500), int)], "500 tokens|530 tokens|501 tokens|are more than"),
    ]:
        with pytest.raises(DogeExportError, match=text):
            decoder.predict_together(forks, wrong)
        assert [fork.length for fork in forks] == lengths
    with pytest.raises(DogeExportError, match="a state is there twice"):
        decoder.predict_together([forks[0], forks[0]], step[:2])

    def fail(states, calls):
        raise RunFailed("there is not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(NativeState, "run_together", staticmethod(fail))
        with pytest.raises(RunFailed):
            decoder.predict_together(forks, step)
    assert [fork.length for fork in forks] == lengths
    found = decoder.predict_together(forks, step)
    for prompt, prediction in zip(PROMPTS, found, strict=False):
        decoder.reset()
        decoder.predict(np.array([prompt]))
        np.testing.assert_array_equal(prediction.logits(), decoder.predict(step[0])[0].logits())


def test_a_router_that_mixes_reads_one_after_another(exported, native_library, runs):
    folder = exported(moe=True)
    decoder = open_decoder(folder, read_manifest(folder), threads=1, backend="native")
    assert not decoder.reads_together
    forks = [decoder.fork() for _ in range(2)]
    found = decoder.predict_together(forks, [np.array([prompt]) for prompt in PROMPTS[:2]])
    for prompt, prediction in zip(PROMPTS, found, strict=False):
        np.testing.assert_array_equal(prediction.logits(), answer_alone(decoder, prompt, 1)[1][0])
    assert runs == []


def test_graphs_read_one_after_another(exported):
    folder = exported()
    decoder = open_decoder(folder, read_manifest(folder), threads=1, backend="graph")
    assert not decoder.reads_together
    forks = [decoder.fork() for _ in range(2)]
    decoder.predict_together(forks, [np.array([prompt]) for prompt in PROMPTS[:2]])
    assert [fork.length for fork in forks] == [3, 17]


def read(lanes, prompt):
    """Read a prompt while the other lanes stand still; the lane and the prediction, or what failed."""
    lane, found = lanes.begin(prompt), {}
    while lane not in found:
        found = lanes.step({})
    if isinstance(found[lane], Exception):
        lanes.leave(lane)
        raise found[lane]
    return lane, found[lane]


def test_answers_join_and_leave_lanes(decoder, runs):
    expected = [answer_alone(decoder, prompt) for prompt in PROMPTS]
    lanes, waiting = TogetherLanes(decoder, 3), list(range(len(PROMPTS)))
    answers, running = [([], []) for _ in PROMPTS], {}
    while waiting or running:
        if waiting and not lanes.is_full:
            number = waiting.pop(0)
            lane, prediction = read(lanes, PROMPTS[number])
            running[lane] = number
            advance(answers, {number: prediction})
        found = lanes.step({lane: answers[number][0][-1] for lane, number in running.items()})
        assert found.keys() == running.keys()
        for lane, prediction in found.items():
            advance(answers, {running[lane]: prediction})
            if len(answers[running[lane]][0]) == STEPS:
                del running[lane]
                lanes.leave(lane)
    lanes.close()
    assert_answers(answers, expected)
    assert max(runs) == 3


def test_prompts_are_read_beside_answers(decoder, monkeypatch, runs):
    """In pieces, the first first; answers go on by a token with each."""
    monkeypatch.setattr("doge_export.serve.together._PIECE", 10)
    expected = [answer_alone(decoder, prompt) for prompt in PROMPTS]
    lanes, answers = TogetherLanes(decoder, 5), [([], []) for _ in PROMPTS]
    assert [lanes.begin(prompt) for prompt in PROMPTS] == list(range(5)) and lanes.is_full
    came = []
    while any(len(tokens) < STEPS for tokens, _ in answers):
        found = lanes.step({lane: a[0][-1] for lane, a in enumerate(answers) if 0 < len(a[0]) < STEPS})
        came += [lane for lane in found if not answers[lane][0]]
        advance(answers, found)
    for (tokens, logits), (wanted, wanted_logits) in zip(answers, expected, strict=True):
        assert tokens == wanted  # a prompt in pieces is read to rounding
        assert_equal_to_rounding(np.array(logits), np.array(wanted_logits), 5e-5)
    assert came == [0, 1, 2, 3, 4] and max(runs) >= 3


def test_a_lane_that_fails_stops_no_other(decoder):
    lanes = TogetherLanes(decoder, 3)
    (first, a), (second, _) = read(lanes, PROMPTS[0]), read(lanes, PROMPTS[1])
    token = a.argmax()
    third = lanes.begin([10**6])
    found = lanes.step({first: token, second: 10**6})
    assert isinstance(found[second], DogeExportError) and isinstance(found[third], DogeExportError)
    tokens, logits = answer_alone(decoder.fork(), PROMPTS[0], 2)
    assert token == tokens[0]
    assert_equal_to_rounding(found[first].logits(), logits[1], 5e-5)
    lanes.leave(second)
    lanes.leave(third)
    with pytest.raises(DogeExportError, match="out of range"):
        read(lanes, [10**6])
    assert read(lanes, PROMPTS[2])[1].argmax() == answer_alone(decoder.fork(), PROMPTS[2], 1)[0][0]
    assert not lanes.is_full


def test_a_lane_keeps_what_it_has_read(decoder):
    """The next prompt with the same beginning goes to it and is read from there on; the answer stays the same."""
    lanes = TogetherLanes(decoder, 2)
    first, other = PROMPTS[1], [7, *PROMPTS[1]]
    lane, prediction = read(lanes, first)
    token = prediction.argmax()
    second, _ = read(lanes, other)
    lanes.step({lane: token})
    lanes.leave(second)
    lanes.leave(lane)
    longer = [*first, token, 9, 8, 3]
    for prompt, where, count in ((longer, lane, 3), (longer, lane, 1), ([*other, 5], second, 1), ([3, 4], lane, 2)):
        begun = lanes.begin(prompt)
        assert (begun, len(lanes._prompts[begun])) == (where, count)
        wanted = answer_alone(decoder.fork(), prompt, 1)[1][0]
        assert_equal_to_rounding(lanes.step({})[begun].logits(), wanted, 5e-5)
        lanes.leave(begun)
    failing = lanes.begin([*other, 10**6])
    assert failing == second and isinstance(lanes.step({})[failing], DogeExportError)
    lanes.leave(failing)
    begun = lanes.begin(other)
    assert len(lanes._prompts[begun]) == len(other)  # what a lane holds that has failed is not relied on
    assert lanes.step({})[begun].argmax() == answer_alone(decoder.fork(), other, 1)[0][0]


def test_what_a_lane_has_lost_is_read_again(decoder, monkeypatch):
    """A head that failed takes a token back; a mark may find no memory. Neither costs an answer."""
    lanes = TogetherLanes(decoder, 1)
    lane, _ = read(lanes, PROMPTS[3])
    decoder.rewind(len(PROMPTS[3]) - 1)
    lanes.leave(lane)
    monkeypatch.setattr(decoder, "mark", lambda: (_ for _ in ()).throw(MemoryError))
    for _ in range(2):
        begun, prediction = read(lanes, PROMPTS[3])
        assert prediction.argmax() == answer_alone(decoder.fork(), PROMPTS[3], 1)[0][0]
        assert not lanes._read_ids[begun]
        lanes.leave(begun)


def test_a_short_beginning_takes_no_conversation(decoder):
    """Of a lane that has read a long one; the one that was left longest ago is taken."""
    lanes = TogetherLanes(decoder, 2)
    (other, _), (long, _) = read(lanes, [1, 2, 3]), read(lanes, PROMPTS[3])
    lanes.leave(other)
    lanes.leave(long)
    assert lanes.begin([*PROMPTS[3][:2], 5, 4, 3, 2]) == other


def test_an_empty_prompt_takes_no_lane(decoder):
    lanes = TogetherLanes(decoder, 1)
    with pytest.raises(ValueError, match="empty"):
        lanes.begin([])
    assert not lanes.is_full
