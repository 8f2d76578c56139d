"""An engine's decoder, over TensorRT and CUDA as recorders: what it answers, and what it asks of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_engine import CANDIDATES, LONGEST, MAX_BATCH, MAX_LENGTH, MAX_LOGITS, PAST, PRESENT, VOCAB, expected

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.manifest import read_manifest
from doge_export.runtime.engine.engine_decoder import BestTokens
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.loading import open_decoder
from doge_export.runtime.prediction import Prediction
from doge_export.runtime.sampling import filtered


@pytest.fixture
def folder(engine_folder):
    return engine_folder()


@pytest.fixture
def decoder(folder):
    return open_decoder(folder, read_manifest(folder))


def rows(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(VOCAB, size=length).tolist() for length in lengths]


def padded(texts):
    """Left-padded ids and mask."""
    length = max(map(len, texts))
    ids = np.array([[0] * (length - len(text)) + text for text in texts])
    mask = np.array([[0] * (length - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def test_a_prompt_and_its_steps(decoder):
    text = rows([6])[0]
    logits = [decoder.forward(np.array([text[:3]]))]
    logits += [decoder.forward(np.array([[token]]), None, 1) for token in text[3:]]
    np.testing.assert_array_equal(np.concatenate(logits, axis=1), expected([text], 6))
    assert decoder.length == 6 and decoder.batch_size == 1


def test_a_long_prompt_is_read_in_pieces(decoder, machine):
    """Only the logits that are asked for are computed, and those of the last piece alone."""
    text = rows([2 * LONGEST + 3])[0]
    np.testing.assert_array_equal(decoder.forward(np.array([text]), None, 2), expected([text], 2))
    assert machine.trt.enqueued == {"prefill": 3}


def test_logits_beyond_those_of_one_run_take_several(decoder, machine):
    text = rows([LONGEST])[0]
    np.testing.assert_array_equal(decoder.forward(np.array([text])), expected([text], LONGEST))
    assert machine.trt.enqueued == {"prefill": LONGEST // MAX_LOGITS}


@pytest.mark.parametrize("chunks", [(7,), (3, 4), (2, 5), (1,) * 7])
def test_rows_of_different_lengths(decoder, chunks):
    """Rows padded on the left give the logits of each row alone, also where a piece of one is all padding."""
    texts = rows([7, 3, 5])
    ids, mask = padded(texts)
    decoder.reset(3)
    parts, start = [], 0
    for chunk in chunks:
        piece = slice(start, start + chunk)
        parts.append(decoder.forward(ids[:, piece], mask[:, piece]))
        start += chunk
    logits = np.concatenate(parts, axis=1)
    for row, text in enumerate(texts):
        np.testing.assert_array_equal(logits[row, -len(text) :], expected([text], len(text))[0])
    more = np.array([[1], [2], [3]])
    after = decoder.forward(more, None, 1)
    np.testing.assert_array_equal(
        after[:, 0], [expected([text + [m]], 1)[0, 0] for text, m in zip(texts, (1, 2, 3), strict=True)]
    )


BEST, ROWS = 512, 256
"""Bytes that come back: ids and logits of a step's best tokens, and all logits of three rows; each aligned to 256."""


def test_only_the_best_tokens_come_back(decoder, machine):
    """From a prompt in pieces, from plain and from recorded steps; all logits are a copy more."""
    text = rows([2 * LONGEST + 3])[0]
    (prediction,) = decoder.predict(np.array([text]))
    assert machine.cuda.downloaded == 3 * [BEST]
    for _ in range(3):
        text.append(prediction.argmax())
        assert text[-1] == expected([text[:-1]], 1).argmax()
        (prediction,) = decoder.predict(np.array([text[-1:]]))
    assert machine.cuda.downloaded == 6 * [BEST]
    np.testing.assert_array_equal(prediction.logits(), expected([text], 1)[0, 0])
    assert machine.cuda.downloaded == [*6 * [BEST], ROWS]


@pytest.mark.parametrize(
    ("settings", "comes_back"),
    [
        ({"do_sample": False}, {BEST}),
        ({"top_k": CANDIDATES - 1, "temperature": 0.5}, {BEST}),
        ({"top_k": 2, "top_p": 0.8, "min_p": 0.1}, {BEST}),
        ({"top_k": 0}, {BEST, ROWS}),
        ({"top_k": VOCAB}, {BEST, ROWS}),
        ({"do_sample": False, "repetition_penalty": 1.5}, {BEST, ROWS}),
    ],
)
def test_what_comes_back_changes_no_answer(engine_folder, machine, settings, comes_back):
    from doge_export.runtime import load

    answers = []
    for candidates in (CANDIDATES, 0):
        session = load(engine_folder(candidates=candidates))
        machine.cuda.downloaded.clear()
        answers.append(session.generate([3, 1, 2], max_new_tokens=20, seed=1, eos_token_id=[], **settings).token_ids)
        assert {*machine.cuda.downloaded} == (comes_back if candidates else {ROWS})
    assert answers[0] == answers[1]


def test_rows_that_ask_for_all_logits_share_one_copy(decoder, machine):
    decoder.reset(2)
    predictions = decoder.predict(np.array([[1, 2], [3, 4]]))
    found = [prediction.logits() for prediction in predictions]
    np.testing.assert_array_equal(found, expected([[1, 2], [3, 4]], 1)[:, 0])
    assert machine.cuda.downloaded == [BEST, ROWS]


@given(
    levels=st.lists(st.integers(0, 6), min_size=12, max_size=12),
    kept=st.integers(1, 12),
    top_k=st.integers(0, 12),
    temperature=st.floats(0.3, 3),
    seed=st.integers(0, 2**32),
)
def test_the_best_tokens_are_enough(levels, kept, top_k, temperature, seed):
    """The choice among the best is that among all, also where logits are equal; asked in any order."""
    logits = np.array(levels, np.float32) / 3
    draw = np.random.default_rng(seed)
    mixed = draw.permutation(12)
    best = draw.permutation(mixed[np.argsort(logits[mixed])][-kept:])
    prediction = BestTokens(best.astype(np.int32), logits[best], lambda: logits)
    config = GenerationConfig(do_sample=True, top_k=top_k, temperature=temperature)
    for ours, plain in zip(filtered(prediction, config), filtered(Prediction(logits), config), strict=True):
        np.testing.assert_array_equal(ours, plain)
    assert prediction.argmax() == Prediction(logits).argmax() or kept == 1


def test_rewinding_forgets(decoder):
    text = rows([9])[0]
    decoder.forward(np.array([text]), None, 1)
    decoder.rewind(4)
    other = [*text[:4], 1, 2]
    np.testing.assert_array_equal(decoder.forward(np.array([[1, 2]])), expected([other], 2))


def test_caches_are_one_buffer_each_allocated_once(decoder, machine):
    """Past and present at one address; nothing is allocated after loading, whatever the batch."""
    before = dict(machine.cuda.calls)
    bound = decoder._runner.buffers.addresses
    assert bound[PAST] == bound[PRESENT]
    for batch in (1, MAX_BATCH, 2):
        decoder.reset(batch)
        decoder.forward(np.ones((batch, 4), int))
        decoder.forward(np.ones((batch, 1), int))
    after = machine.cuda.calls
    assert after["cudaMalloc"] == before["cudaMalloc"] and after["cudaMallocHost"] == before["cudaMallocHost"]
    assert decoder._runner.buffers.addresses[PAST] == bound[PAST]


def test_a_cache_snapshot_is_that_of_the_tokens(decoder):
    texts = rows([5, 2])
    ids, mask = padded(texts)
    decoder.reset(2)
    decoder.forward(ids, mask)
    ((key, value),) = decoder.cache_snapshot()
    assert key.shape == (2, 1, 5, 1)
    assert key[0, 0, :, 0].tolist() == texts[0] and key[1, 0, 3:, 0].tolist() == texts[1]
    np.testing.assert_array_equal(value, 2 * key)


def test_decoding_is_recorded_once_for_a_batch_size(decoder, machine):
    """The first step runs, the second is recorded, all others are one launch; a prompt between changes nothing."""
    text = rows([4])[0]
    decoder.forward(np.array([text]), None, 1)
    for _ in range(6):
        text.append(3)
        assert (decoder.forward(np.array([[3]])) == expected([text], 1)).all()
    assert machine.trt.enqueued["decode"] == 2
    assert machine.cuda.calls["cudaGraphLaunch"] == 5
    decoder.reset()
    text = rows([5], seed=1)[0]
    decoder.forward(np.array([text]), None, 1)
    for _ in range(3):
        text.append(5)
        np.testing.assert_array_equal(decoder.forward(np.array([[5]])), expected([text], 1))
    assert machine.trt.enqueued["decode"] == 2 and machine.cuda.graphs == 1
    decoder.reset(2)
    for _ in range(3):
        decoder.forward(np.ones((2, 1), int))
    assert machine.trt.enqueued["decode"] == 4 and machine.cuda.graphs == 1
    assert machine.cuda.calls["cudaGraphInstantiate"] == 2


def test_what_cannot_be_recorded_runs_all_the_same(decoder, machine):
    machine.trt.refuses.add("capture")
    text = [1]
    decoder.forward(np.array([text]))
    for _ in range(3):
        text.append(2)
        np.testing.assert_array_equal(decoder.forward(np.array([[2]])), expected([text], 1))
    assert machine.cuda.calls["cudaGraphLaunch"] == 0


def test_each_profile_has_its_context_and_both_share_scratch(decoder, machine):
    decoder.forward(np.ones((1, 3), int))
    decoder.forward(np.ones((1, 1), int))
    contexts = decoder._runner._contexts
    assert [context.profile for context in contexts.values()] == [[0], [1]]
    assert contexts["prefill"].memory == contexts["decode"].memory
    assert machine.trt.calls["IExecutionContext.set_optimization_profile_async"] == 2


def test_what_was_said_of_an_earlier_token_cannot_be_asked_for(decoder):
    (prediction,) = decoder.predict(np.array([[1, 2]]))
    decoder.predict(np.array([[3]]))
    with pytest.raises(RuntimeError, match="run again"):
        prediction.logits()


@pytest.mark.parametrize("best", [[np.nan, 1.0], [np.nan, np.nan], [np.inf, np.inf], [2.0, 2.0]])
def test_where_the_best_decide_nothing_all_are_asked(best):
    logits = np.array([0.5, *best, 2.0], np.float32)
    prediction = BestTokens(np.array([2, 1], np.int32), np.array(best, np.float32)[::-1], lambda: logits)
    if np.isfinite(logits).all():
        assert prediction.argmax() == logits.argmax()
    else:
        with pytest.raises(RunFailed, match="not finite"):
            prediction.argmax()


@contextlib.contextmanager
def interrupted_in(monkeypatch, machine, method):
    """Ctrl-C in the first call of a method of the recorder, if there is one."""

    def pressed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(type(machine.trt), method, pressed)
        yield


@pytest.mark.parametrize(
    "method",
    [
        "IExecutionContext_set_tensor_address",
        "IExecutionContext_set_input_shape",
        "IExecutionContext_infer_shapes",
        "IExecutionContext_execute_async_v3",
    ],
)
@pytest.mark.parametrize("before", [[], [[2, 2]]], ids=["after a step", "after a prompt"])
@pytest.mark.parametrize("interrupted", [[1, 2, 3, 4], [4]], ids=["prompt", "step"])
def test_an_interrupted_run_leaves_no_trace(decoder, machine, monkeypatch, method, before, interrupted):
    texts = [[1, 2, 3], [3, 2, 1]]
    decoder.reset(2)
    decoder.forward(np.array(texts))
    for token in (4, 5, 6):
        texts = [[*text, token] for text in texts]
        decoder.forward(np.array([[token]] * 2))
    length = decoder.length
    for text in before:
        decoder.forward(np.array([text] * 2))
    with interrupted_in(monkeypatch, machine, method):
        decoder.forward(np.array([interrupted] * 2))
    decoder.rewind(length)
    for token in (7, 8):
        texts = [[*text, token] for text in texts]
        np.testing.assert_array_equal(decoder.forward(np.array([[token]] * 2)), expected(texts, 1))
    decoder.rewind(length)
    texts = [[*text[:length], 9, 1] for text in texts]
    np.testing.assert_array_equal(decoder.forward(np.array([[9, 1]] * 2)), expected(texts, 2))


def test_a_closed_engine_says_so(decoder, machine):
    decoder.forward(np.ones((1, 3), int))
    before = machine.cuda.calls["cudaStreamDestroy"]
    decoder.close()
    decoder.close()
    assert machine.cuda.calls["cudaStreamDestroy"] == before + 1
    for new in (3, 2, 1):
        with pytest.raises(DogeExportError, match="was closed"):
            decoder.forward(np.ones((1, new), int))


def test_an_engine_that_nobody_holds_gives_its_memory_back(folder, machine):
    decoder = open_decoder(folder, read_manifest(folder))
    decoder.forward(np.ones((1, 3), int))
    del decoder
    gc.collect()
    assert not machine.cuda.device and not machine.cuda.host


def test_memory_is_given_back(decoder, machine):
    decoder.forward(np.ones((1, 3), int))
    decoder.forward(np.ones((1, 1), int))
    decoder.forward(np.ones((1, 1), int))
    decoder.close()
    assert not machine.cuda.device and not machine.cuda.host and machine.cuda.graphs == 0


def test_a_session_generates_over_it(folder):
    from doge_export.runtime import load

    session = load(folder)
    answers = session.generate([[1, 2, 3], [4]], max_new_tokens=5, do_sample=False, eos_token_id=[])
    for answer in answers:
        ids = list(answer.prompt_token_ids)
        for token in answer.token_ids:
            assert token == expected([ids], 1)[0, 0].argmax()
            ids.append(token)
    assert session.max_length == MAX_LENGTH


def test_a_fork_has_caches_of_its_own_on_the_same_engine(decoder):
    fork = decoder.fork()
    ids, others = rows([4], seed=1), rows([6], seed=2)
    decoder.forward(np.array(ids))
    fork.forward(np.array(others))  # in between
    for step in (3, 5):
        for each, read in ((decoder, ids), (fork, others)):
            read[0] = [*read[0], step]
            np.testing.assert_allclose(each.forward(np.array([[step]])), expected(read, 1)[:, None][:, 0], rtol=1e-5)
    assert fork._runner._opened.engine is decoder._runner._opened.engine
    assert fork._runner._device is not decoder._runner._device
    fork.close()
    assert decoder.predict(np.array([[1]]))[0].argmax() == expected([[*ids[0], 1]], 1)[0, 0].argmax()
    with pytest.raises(DogeExportError, match="closed"):
        fork.forward(np.array([[1]]))
    with pytest.raises(DogeExportError, match="closed"):
        fork.fork()


def test_too_much_is_refused(decoder):
    with pytest.raises(DogeExportError, match="4 rows are more than this engine takes"):
        decoder.reset(MAX_BATCH + 1)
    with pytest.raises(DogeExportError, match="33 tokens are more"):
        decoder.forward(np.ones((1, MAX_LENGTH + 1), int))
    with pytest.raises(DogeExportError, match="token id 11 is out of range"):
        decoder.forward(np.array([[VOCAB]]))


def test_padding_under_reference_routing_is_refused(decoder):
    decoder._limits = dataclasses.replace(decoder._limits, mixes_rows=True)
    decoder.reset(2)
    decoder.forward(np.ones((2, 3), int))
    decoder.reset(2)
    with pytest.raises(DogeExportError, match="per-token"):
        decoder.forward(np.ones((2, 3), int), np.array([[1, 1, 1], [0, 1, 1]]))


def test_a_failed_run_says_what_tensorrt_said(decoder, machine):
    machine.trt.refuses.add("execute")
    decoder._runner._opened.logger.log(machine.trt.ILogger.Severity.ERROR, "out of\nrange")
    with pytest.raises(RunFailed, match="could not run: out of range"):
        decoder.forward(np.ones((1, 2), int))


def test_no_memory_says_what_to_lower(folder, machine):
    machine.cuda.fail["cudaMalloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(RunFailed, match="lower --max-batch or --max-length"):
        open_decoder(folder, read_manifest(folder))


def test_an_engine_runs_where_nothing_of_the_export_is_installed():
    program = (
        "import sys, doge_export.runtime.engine.engine_decoder; "
        "print(sorted({'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'polygraphy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
