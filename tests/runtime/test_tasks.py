"""Hidden states and embeddings of exported folders, against transformers' models; what both tasks refuse."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import transformers
from doge_runs import distinct_ids, left_padded
from random_doge import CONFIG, MAX_LENGTH, MOE
from task_answers import CLASSES, FEATURES, TEXTS, TRAINED, WIDE, WRITING, assert_close, right_padded, theirs
from task_models import VOCAB_SIZE

from doge_export.errors import DogeExportError
from doge_export.runtime import FeatureSession, load


class TestHiddenStates:
    @pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
    @pytest.mark.parametrize("length", [1, 7, TRAINED, MAX_LENGTH])
    def test_of_fully_masked_rows(self, features, target, length):
        model, session = features(target=target)
        assert isinstance(session, FeatureSession) and session.max_length == MAX_LENGTH
        ids = distinct_ids(2, length, VOCAB_SIZE)
        states = session.hidden_states(ids)
        assert states.shape == (2, length, CONFIG["hidden_size"])
        assert_close(states, theirs(model, ids))
        assert_close(session.hidden_states(ids[0].tolist()), theirs(model, ids[:1]))

    @pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
    @pytest.mark.parametrize("padded", [left_padded, right_padded])
    @pytest.mark.parametrize("length", [30, TRAINED + 10])
    def test_of_padded_batches(self, features, target, padded, length):
        model, session = features(target=target)
        ids, mask = distinct_ids(4, length, VOCAB_SIZE), padded(length, 0, 3, 17, length - 1)
        assert_close(session.hidden_states(ids, mask)[mask == 1], theirs(model, ids, mask)[mask == 1])

    def test_of_a_batch_whose_rows_route_one_another(self, features):
        model, session = features(**MOE)
        ids, mask = distinct_ids(3, 24, VOCAB_SIZE), right_padded(24, 0, 5, 9)
        found = session.hidden_states(ids, mask)
        assert_close(found[mask == 1], theirs(model, ids, mask)[mask == 1])
        assert np.abs(found[2, :15] - session.hidden_states(ids[2:, :15])[0]).max() > 0.01

    @pytest.mark.parametrize("lower", [False, True])
    def test_of_a_language_model_and_of_its_body(self, task_export, tmp_path, lower):
        """A checkpoint with a language model's head, exported for its hidden states."""
        from doge_export import export

        model, checkpoint, _ = task_export(WRITING, tie_word_embeddings=lower)
        folder = export(checkpoint, tmp_path / "out", task=FEATURES, max_length=MAX_LENGTH, validate=False).folder
        ids = distinct_ids(2, 30, VOCAB_SIZE)
        assert_close(load(folder, threads=1).hidden_states(ids), theirs(model.model, ids))


class TestEmbed:
    @pytest.mark.parametrize("changes", [{}, {"pad_token_id": None}, MOE, {"target": "portable"}], ids=str)
    def test_equals_transformers_text_by_text(self, features, changes):
        """Also where a batch has long rows (scaled RoPE) and where rows route one another."""
        model, session = features(**WIDE, **changes)
        texts = [*TEXTS, "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2]
        rows = [np.array([session.tokenizer.encode(text)]) for text in texts]
        assert max(row.shape[1] for row in rows) > TRAINED > min(row.shape[1] for row in rows)
        states = [theirs(model, row)[0] for row in rows]
        assert_close(session.embed(texts), np.stack([state.mean(axis=0) for state in states]))
        assert_close(session.embed(texts, pooling="last"), np.stack([state[-1] for state in states]))
        for found, state in zip(session.embed(texts, pooling="none"), states, strict=True):
            assert_close(found, state)

    def test_normalized(self, features):
        _, session = features()
        plain, unit = session.embed(TEXTS), session.embed(TEXTS, normalize=True)
        np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
        for states in session.embed(TEXTS, pooling="none", normalize=True):
            np.testing.assert_allclose(np.linalg.norm(states, axis=1), 1, atol=1e-6)

    def test_texts_may_be_ids(self, features):
        _, session = features()
        ids = [session.tokenizer.encode(text) for text in TEXTS]
        expected = session.embed(TEXTS)
        np.testing.assert_array_equal(session.embed(ids), expected)
        np.testing.assert_array_equal(session.embed([np.array(row) for row in ids]), expected)
        for single in (TEXTS[0], ids[0], np.array(ids[0])):
            np.testing.assert_allclose(session.embed(single), expected[:1], atol=1e-5)
        together = np.array([ids[0], ids[0]])
        np.testing.assert_allclose(session.embed(together), expected[[0, 0]], atol=1e-5)

    def test_no_texts_are_no_vectors(self, features):
        _, session = features()
        assert session.embed([]).shape == (0, CONFIG["hidden_size"])
        assert session.embed([], pooling="none") == []

    def test_hundreds_of_texts_come_back_in_order(self, features):
        _, session = features(**WIDE)
        texts = [f"{'word ' * (index % 7)}{index}" for index in range(200)]
        done = []
        together = session.embed(texts, on_progress=done.append)
        assert sum(done) == 200 and max(done) == 32
        one_by_one = np.concatenate([session.embed(text) for text in texts])
        np.testing.assert_allclose(together, one_by_one, atol=2e-5)


class TestBatches:
    ROWS = tuple(list(range(3, 3 + length)) for length in (5, 60, 7, 5, 50, 6, 48))

    def test_neighbours_in_length_run_together(self, features, recorded):
        session, shapes = recorded(features()[1])
        session.embed(self.ROWS, batch_size=3)
        assert shapes == [(1, 60), (1, 50), (3, 48), (2, 5)]

    def test_rows_that_route_one_another_run_alone(self, features, classes, recorded):
        for session, shapes in (recorded(features(**MOE)[1]), recorded(classes(**MOE)[1])):
            session._each(self.ROWS, len, False, 32, None)
            assert shapes == [(1, length) for length in (60, 50, 48, 7, 6, 5, 5)]
        session, shapes = recorded(features(**MOE, cdmoe_routing="per-token")[1])
        session.embed(self.ROWS)
        assert shapes == [(1, 60), (1, 50), (5, 48)]

    def test_long_rows_run_in_small_batches(self, features, recorded, monkeypatch):
        monkeypatch.setattr("doge_export.runtime.single_pass.PAIRS", 2 * 48**2 + 1)
        session, shapes = recorded(features()[1])
        session.embed(self.ROWS)
        assert shapes == [(1, 60), (1, 50), (2, 48), (3, 6)]


class TestTruncation:
    LONG = "Rex was happy, and the ball was red. " * 30

    def test_long_texts_are_refused_with_both_ways_out(self, features, classes):
        for session, use in ((features()[1], "embed"), (classes()[1], "classify")):
            with pytest.raises(
                DogeExportError, match=r"^\d+ tokens are more than this export holds \(72\): .*truncate"
            ):
                getattr(session, use)(self.LONG)
            with pytest.raises(DogeExportError, match=r"^text 2: \d+ tokens .*--truncate.*--max-length"):
                getattr(session, use)(["x", self.LONG])

    @pytest.mark.parametrize("suffix", [False, True])
    def test_cuts_as_transformers_cuts(self, task_export, tmp_path, suffix):
        """Also where the tokenizer adds a token at the end, which stays."""
        exported = task_export(FEATURES).folder
        folder = shutil.copytree(exported, tmp_path / "out")
        if suffix:
            file = folder / "tokenizer.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            end = {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}
            content["post_processor"]["single"].append(end)
            content["post_processor"]["special_tokens"]["<|end_of_text|>"] = {
                "id": "<|end_of_text|>",
                "ids": [1],
                "tokens": ["<|end_of_text|>"],
            }
            file.write_text(json.dumps(content), encoding="utf-8")
        session, reference = load(folder, threads=1), transformers.AutoTokenizer.from_pretrained(folder)
        expected = reference(self.LONG, truncation=True, max_length=72).input_ids
        assert len(expected) == 72 and (expected[-1] == 1) == suffix
        np.testing.assert_array_equal(session.embed(self.LONG, truncate=True), session.embed(expected))
        whole = session.tokenizer.encode(self.LONG)
        assert whole[:40] == expected[:40] and len(whole) > 72  # the tokenizer is as it was
        np.testing.assert_array_equal(session.embed(whole, truncate=True), session.embed(whole[:72]))
        np.testing.assert_array_equal(session.embed("x", truncate=True), session.embed("x"))


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ("", "prompt is empty"),
        (["a", ""], "^text 2: the prompt is empty"),
        ([[]], "^text 1: the prompt is empty"),
        (["a", [5, VOCAB_SIZE]], f"^text 2: token id {VOCAB_SIZE} is out of range"),
        ([3, -1], "token id -1 is out of range"),
        (None, "expected a text, token ids, or a list of those, not NoneType"),
        (3, "expected a text"),
        ({"text": "a"}, "expected a text"),
        ([None], "^text 1: a prompt is a text, token ids"),
        (b"bytes", "not bytes"),
        (["a", b"bytes"], "^text 2: .*not bytes"),
        ([{"role": "user", "content": "a"}], "^text 1: chat messages are for text-generation"),
        ([[{"role": "user", "content": "a"}]], "^text 1: chat messages are for text-generation"),
        (["a", "half \ud83d"], "^text 2: the text has a lone surrogate"),
    ],
    ids=str,
)
def test_bad_texts_are_one_line_and_nothing_runs(features, classes, recorded, texts, line):
    for both, use in ((features(), "embed"), (classes(), "classify")):
        session, shapes = recorded(both[1])
        with pytest.raises(DogeExportError, match=line) as caught:
            getattr(session, use)(texts)
        assert "\n" not in str(caught.value)
        assert shapes == []


@pytest.mark.parametrize(
    ("use", "settings", "line"),
    [
        ("embed", {"pooling": "max"}, "pooling is 'max', expected one of mean, last, none"),
        ("embed", {"batch_size": 0}, "batch_size is 0, expected 1 or more"),
        ("classify", {"batch_size": 1.5}, "batch_size is 1.5"),
        ("classify", {"top_k": 0}, "top_k is 0, expected 1 or more, or None"),
        ("classify", {"top_k": True}, "top_k is True"),
        ("classify", {"function_to_apply": "relu"}, "function_to_apply is 'relu', expected one of softmax"),
    ],
)
def test_bad_settings_are_one_line(features, classes, use, settings, line):
    _, session = features() if use == "embed" else classes()
    with pytest.raises(DogeExportError, match=line):
        getattr(session, use)("x", **settings)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (([[1, 2], [3]],), "rows of different lengths"),
        (([],), "has shape"),
        (([1.5],), "float64 values"),
        (([VOCAB_SIZE],), "out of range"),
        (([1] * 73,), r"73 tokens are more than this export holds \(72\)"),
        (([1, 2], [1]), "attention_mask has shape"),
        (([1, 2], [1, 2]), "other values than 0"),
        (([[1, 2], [3, 4]], [[1, 1], [0, 0]]), "a row of padding alone"),
    ],
)
def test_bad_ids_are_one_line(features, classes, arguments, line):
    for call in (features()[1].hidden_states, classes()[1].logits):
        with pytest.raises(DogeExportError, match=line):
            call(*arguments)


def test_a_folder_without_a_tokenizer_takes_ids(task_export, tmp_path):
    for task, use in ((FEATURES, "embed"), (CLASSES, "classify")):
        folder = shutil.copytree(task_export(task).folder, tmp_path / task)
        (folder / "tokenizer.json").unlink()
        session = load(folder, threads=1)
        assert len(getattr(session, use)([[5, 6], [7]])) == 2
        with pytest.raises(DogeExportError, match=r"no tokenizer\.json"):
            getattr(session, use)("text")
