"""Folders with a bounded cache: lengths beyond every table, going back, chats, and the models that have none."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

import doge_export
from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.package.manifest import UNLIMITED, read_manifest
from doge_export.pipeline.plan import plan


@pytest.fixture(scope="module", params=["portable", "onnxruntime"])
def folders(request, tmp_path_factory):
    """doge-nano, which keeps 64 keys: with a bounded cache, and with an unbounded one of 600 tokens."""
    made = tmp_path_factory.mktemp("bounded")
    options = {"target": request.param, "validate": False}
    doge_export.export("doge-nano", made / "bounded", cache="bounded", max_length="unlimited", **options)
    doge_export.export("doge-nano", made / "unbounded", max_length=600, **options)
    return made / "bounded", made / "unbounded"


@pytest.fixture(scope="module")
def sessions(folders):
    return [doge_export.load(folder, threads=1, backend="graph") for folder in folders]


def ids_of(length, seed=0):
    return np.random.default_rng(seed).choice(np.arange(3, 1000), (1, length), replace=False)


def test_manifest_card_and_inspect_say_it(folders):
    bounded, unbounded = map(read_manifest, folders)
    assert (bounded.cache, bounded.max_length) == ("bounded", UNLIMITED)
    assert bounded.graphs["onnx/model.onnx"].interface == "bounded"
    assert unbounded.cache == "unbounded"
    assert "keeps the 64 keys" in (folders[0] / "README.md").read_text()
    shown = CliRunner().invoke(main, ["inspect", str(folders[0])]).output
    assert "bounded, 64 keys a layer and head" in shown


def test_older_folders_are_unbounded(folders):
    values = json.loads((folders[1] / "doge_export.json").read_text())
    del values["cache"]
    assert type(read_manifest(folders[1])).from_dict(values).cache == "unbounded"


def test_slots_stop_growing_and_logits_stay_equal(sessions):
    ids = ids_of(256 + 40)
    chunks = [200, 56, *[1] * 40]
    found, expected = (session.logits(ids, chunks=chunks) for session in sessions)
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()
    decoder = sessions[0].decoder
    assert (decoder.length, decoder.slots) == (296, 64)
    assert all(cache.shape == (1, 2, 64, 64) for pair in decoder.cache_snapshot() for cache in pair)


def test_goes_back_where_no_key_was_dropped_and_to_marks(sessions):
    decoder = sessions[0].decoder
    ids = ids_of(120)
    with sessions[0].exclusive():
        sessions[0].reset()
        decoder.forward(ids[:, :50])
        assert decoder.recallable(17) == 17
        decoder.mark()
        decoder.forward(ids[:, 50:100])
        decoder.mark()
        decoder.forward(ids[:, 100:])
        assert [decoder.recallable(length) for length in (120, 119, 100, 99, 50, 30)] == [120, 100, 100, 50, 50, 30]
        with pytest.raises(DogeExportError, match="cannot be set back from 120 to 110 tokens"):
            decoder.rewind(110)
        expected = sessions[1].logits(ids)
        for length in (100, 50, 30):
            decoder.rewind(length)
            assert decoder.length == length
            found = decoder.forward(ids[:, length:], num_logits_to_keep=1)
            assert np.abs(found - expected[:, -1:]).max() <= 2e-5 * expected.std()
            decoder.rewind(decoder.recallable(length))


def test_padding_is_counted_when_it_goes_back(sessions):
    decoder = sessions[0].decoder
    ids, mask = np.repeat(ids_of(40), 2, axis=0), np.ones((2, 40), np.int64)
    mask[1, :7] = 0
    with sessions[0].exclusive():
        decoder.reset(2)
        whole = decoder.forward(ids, mask)
        decoder.rewind(20)
        again = decoder.forward(ids[:, 20:], mask[:, 20:])
        sessions[0].reset()
    np.testing.assert_allclose(again, whole[:, 20:], atol=1e-4)


def test_a_chat_far_beyond_the_window_answers_as_the_unbounded_one(sessions):
    bounded, unbounded = (session.chat() for session in sessions)
    read = []
    decoder = sessions[0].decoder
    forward = decoder.forward
    decoder.forward = lambda ids, *rest: (read.append(ids.shape[1]), forward(ids, *rest))[1]
    try:
        for question in ("What is in the box?", "Where is the ball?", "Who has it?", "Thank you!", "And then?"):
            answers = ["".join(chat.send(question, max_new_tokens=24)) for chat in (bounded, unbounded)]
            assert answers[0] == answers[1]
    finally:
        del decoder.forward
    assert decoder.length > 2 * 64
    assert max(size for size in read[1:]) < 64  # no turn was read again from the beginning


def test_generate_and_eval(folders, tmp_path):
    answers = [
        doge_export.load(folder, threads=1).generate("Once upon a time", max_new_tokens=200) for folder in folders
    ]
    assert answers[0] == answers[1]
    text = tmp_path / "text.txt"
    text.write_text(answers[0].text * 3)
    runs = [
        CliRunner().invoke(main, ["eval", str(folder), "--text", str(text), "--json", "--length", "256"])
        for folder in folders
    ]
    assert [run.exit_code for run in runs] == [0, 0], runs[0].output
    found, expected = (json.loads(run.stdout)["text"]["perplexity"] for run in runs)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "unlimited"}, "add --cache bounded"),
        ({"cache": "bounded", "max_length": 64, "target": "portable"}, "keeps 64 keys and max length 64 needs no more"),
        ({"cache": "bounded", "target": "canonical"}, "target canonical has no bounded cache"),
        ({"cache": "bounded", "target": "portable", "task": "feature-extraction"}, "it has no cache"),
        ({"cache": "slow"}, "choose unbounded or bounded"),
    ],
)
def test_refused_in_one_line(options, message):
    with pytest.raises(DogeExportError, match=message):
        plan("doge-nano", **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_heads": 4}, "one score for each of the 2 key/value heads"),
        ({"keep_window_size": 0}, "without keep_window_size"),
        ({"score": "threshold"}, "without keep_window_size"),
        ({"score": "none", "score_heads": 1}, "one score for each"),
    ],
)
def test_refused_models(changes, message):
    from doge_export.pipeline.bounded import check_bounded
    from doge_export.targets import TARGETS

    architecture = dataclasses.replace(plan("doge-nano").architecture, **changes)
    with pytest.raises(DogeExportError, match=message):
        check_bounded(TARGETS["portable"], architecture, UNLIMITED)


@pytest.mark.slow
def test_quantised_weights_lose_what_they_lose_without_a_bound(tmp_path):
    """int8 at a length of four windows; doge-nano's limit behind 256 tokens is another matter, so it is widened."""
    found = []
    for cache in ("bounded", "unbounded"):
        made = doge_export.export(
            "doge-nano",
            tmp_path / cache,
            target="portable",
            cache=cache,
            max_length=256,
            validate=False,
            precisions=["int8"],
            max_kl=0.1,
        )
        found.append(made.qualities["onnx/model_quantized.onnx"].kl_mean)
    assert found[0] == pytest.approx(found[1], rel=0.05)
