"""An engine's decoder that starts the next step before it is asked for: what it answers, and what the device does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_engine import CANDIDATES, MAX_BATCH, MAX_LENGTH, VOCAB, expected

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest
from doge_export.runtime.engine.engine_decoder import PATIENCE
from doge_export.runtime.loading import open_decoder


@pytest.fixture
def decoder(engine_folder):
    folder = engine_folder()
    return open_decoder(folder, read_manifest(folder))


def best(texts):
    """The best next token of each row."""
    return expected(texts, 1)[:, 0].argmax(axis=-1)


def take_best(decoder, texts, steps):
    """Let every row take its best token a few times; every answer must be the right one."""
    for _ in range(steps):
        tokens = best(texts)
        predictions = decoder.predict(tokens[:, None])
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        assert [prediction.argmax() for prediction in predictions] == best(texts).tolist()


def started(decoder, texts):
    """A decoder that has read the rows."""
    decoder.reset(len(texts))
    decoder.predict(np.array(texts))
    return decoder


@pytest.mark.parametrize("texts", [[[3, 1, 2]], [[3, 1, 2], [5, 0, 4]]], ids=["a row", "two rows"])
def test_the_next_step_is_on_the_device_before_it_is_asked_for(decoder, machine, texts):
    started(decoder, texts)
    take_best(decoder, texts, PATIENCE)
    before = machine.trt.enqueued["decode"], machine.cuda.calls["cudaGraphLaunch"]
    assert machine.cuda.work, "nothing is on the device"
    waits = machine.cuda.calls["cudaStreamSynchronize"]
    take_best(decoder, texts, 8)
    assert machine.cuda.calls["cudaGraphLaunch"] == before[1] + 8, "one launch a token"
    assert machine.cuda.calls["cudaStreamSynchronize"] == waits, "the device was idle between two steps"
    assert machine.cuda.work


def test_who_takes_other_tokens_gets_no_look_ahead(decoder, machine):
    text = [3, 1, 2]
    started(decoder, [text])
    for _ in range(10):
        worst = int(expected([text], 1)[0, 0].argmin())
        text.append(worst)
        (prediction,) = decoder.predict(np.array([[worst]]))
        assert prediction.argmax() == best([text])[0]
        assert not machine.cuda.work


def test_the_last_step_is_that_of_the_last_slot(decoder, machine):
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], MAX_LENGTH - len(text))
    assert not machine.cuda.work
    with pytest.raises(DogeExportError, match="more than this export holds"):
        decoder.predict(np.array([[1]]))


def test_all_logits_of_a_step_that_was_followed(decoder, machine):
    """They are computed again, and the caller is believed to want them again."""
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], PATIENCE + 1)
    text.append(int(best([text])[0]))
    (prediction,) = decoder.predict(np.array([[text[-1]]]))
    assert machine.cuda.work
    np.testing.assert_array_equal(prediction.logits(), expected([text], 1)[0, 0])
    np.testing.assert_array_equal(prediction.logits(), expected([text], 1)[0, 0])
    take_best(decoder, [text], PATIENCE - 1)
    assert not machine.cuda.work
    take_best(decoder, [text], 2)
    assert machine.cuda.work


@pytest.mark.parametrize("method", ["_cudaEventSynchronize", "_cudaEventRecord", "_cudaGraphLaunch"])
def test_ctrl_c_while_a_step_is_ahead(decoder, machine, monkeypatch, method):
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], PATIENCE + 2)

    def pressed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(machine.cuda), method, pressed)
        decoder.predict(np.array([[best([text])[0]]]))
    decoder.rewind(len(text))
    take_best(decoder, [text], 3)


def test_a_closed_engine_with_a_step_ahead_gives_everything_back(decoder, machine):
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], PATIENCE + 2)
    decoder.close()
    assert not machine.cuda.device and not machine.cuda.host and not machine.cuda.events and machine.cuda.graphs == 0


def test_what_cannot_be_recorded_is_followed_all_the_same(decoder, machine):
    machine.trt.refuses.add("capture")
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], PATIENCE + 5)
    assert machine.cuda.calls["cudaGraphLaunch"] == 0 and machine.cuda.work


def test_without_best_tokens_nothing_is_looked_ahead_to(engine_folder, machine):
    folder = engine_folder(candidates=0)
    decoder = open_decoder(folder, read_manifest(folder))
    text = [3, 1, 2]
    started(decoder, [text])
    take_best(decoder, [text], PATIENCE + 2)
    assert not machine.cuda.work


CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("best"), st.integers(1, PATIENCE + 2)),
        st.tuples(st.just("other"), st.integers(0, VOCAB - 1)),
        st.tuples(st.just("forward"), st.integers(1, 3)),
        st.tuples(st.just("rewind"), st.integers(0, 6)),
        st.tuples(st.just("logits"), st.just(0)),
        st.tuples(st.just("reset"), st.integers(1, MAX_BATCH)),
    ),
    max_size=25,
)


@given(calls=CALLS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_calls_in_any_order_give_the_right_logits(decoder, calls):
    texts = [[3, 1, 2]]
    started(decoder, texts)
    for call, number in calls:
        room = MAX_LENGTH - len(texts[0])
        if call == "best":
            take_best(decoder, texts, min(number, room))
        elif call == "other" and room:
            tokens = [(number + row) % VOCAB for row in range(len(texts))]
            texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
            prediction = decoder.predict(np.array(tokens)[:, None])[-1]
            np.testing.assert_array_equal(prediction.candidates(CANDIDATES - 1)[1].max(), expected(texts, 1)[-1].max())
        elif call == "forward" and number <= room:
            texts = [[*text, *range(number)] for text in texts]
            found = decoder.forward(np.array([list(range(number))] * len(texts)))
            np.testing.assert_array_equal(found, expected(texts, number))
        elif call == "rewind" and len(texts[0]) > number + 1:
            texts = [text[: len(text) - number] for text in texts]
            decoder.rewind(len(texts[0]))
        elif call == "logits" and room:
            tokens = best(texts)
            texts = [[*text, token] for text, token in zip(texts, tokens.tolist(), strict=True)]
            found = [prediction.logits() for prediction in decoder.predict(tokens[:, None])]
            np.testing.assert_array_equal(found, expected(texts, 1)[:, 0])
        elif call == "reset":
            texts = [[row + 1, 2, 3 * row] for row in range(number)]
            started(decoder, texts)
