"""Hidden states, embeddings and classes of exported folders, against transformers' models and pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from doge_runs import distinct_ids, left_padded
from random_doge import CONFIG, MAX_LENGTH, MOE
from task_models import VOCAB_SIZE

from doge_export.errors import DogeExportError
from doge_export.runtime import ClassificationSession, FeatureSession, Session, load

GOLDEN = Path(__file__).parents[1] / "golden"
FEATURES, CLASSES, WRITING = "feature-extraction", "text-classification", "text-generation"
TRAINED = CONFIG["max_position_embeddings"]
TEXTS = [
    "Once upon a time a small dog named Rex found a red ball in the garden.",
    "Hey!",
    "What is the colour of the ball?",
    "北京 👍🏽",
    "x",
    "Rex was happy, " * 4,
]
"""Of very different lengths, with words that come twice. Two equal tokens have equal scores in the first layer, and
which of them a token keeps is open, so wherever these texts are compared the model keeps all keys (`WIDE`)."""
WIDE = {"keep_window_size": MAX_LENGTH}


@torch.no_grad()
def theirs(model, ids, mask=None):
    """transformers' hidden states or logits, from a rotary module that no earlier run has touched."""
    inner = getattr(model, "model", model)
    inner.rotary_emb = type(inner.rotary_emb)(inner.config)
    output = model(torch.from_numpy(ids), None if mask is None else torch.from_numpy(mask), use_cache=False)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()


def assert_close(actual, expected):
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1
    assert np.abs(actual - expected).max() <= 1e-4


def right_padded(length, *padding):
    return left_padded(length, *padding)[:, ::-1].copy()


@pytest.fixture
def features(task_export):
    """transformers' model and our session of one export."""

    def open_both(**changes):
        model, _, folder = task_export(FEATURES, **changes)
        return model, load(folder, threads=1)

    return open_both


@pytest.fixture
def classes(task_export):
    def open_both(**changes):
        model, _, folder = task_export(CLASSES, **{"num_labels": 3} | changes)
        return model, load(folder, threads=1)

    return open_both


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


class Recorder:
    """Stands before a graph and notes the shapes it is run with."""

    def __init__(self, graph):
        self.graph, self.shapes = graph, []

    def run(self, names, feeds):
        self.shapes.append(feeds["input_ids"].shape)
        return self.graph.run(names, feeds)


@pytest.fixture
def recorded():
    def wrap(session):
        session._graph = Recorder(session._graph)
        return session, session._graph.shapes

    return wrap


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


class TestLogits:
    @pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
    @pytest.mark.parametrize("length", [1, 7, TRAINED, MAX_LENGTH])
    def test_of_fully_masked_rows(self, classes, target, length):
        model, session = classes(target=target)
        assert isinstance(session, ClassificationSession)
        assert session.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        ids = distinct_ids(3, length, VOCAB_SIZE)
        assert_close(session.logits(ids), theirs(model, ids))
        assert_close(session.logits(ids[0]), theirs(model, ids[:1]))

    @pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
    @pytest.mark.parametrize("padded", [left_padded, right_padded])
    @pytest.mark.parametrize("changes", [{}, MOE], ids=["dense", "moe"])
    def test_of_padded_batches(self, classes, target, padded, changes):
        model, session = classes(target=target, **changes)
        ids, mask = distinct_ids(4, 30, VOCAB_SIZE), padded(30, 0, 3, 17, 29)
        ids[mask == 0] = model.config.pad_token_id
        assert_close(session.logits(ids, mask), theirs(model, ids, mask))

    def test_of_rows_with_the_padding_id_inside(self, classes):
        """transformers looks for the last token that is not padding by its id, not by the mask."""
        model, session = classes()
        ids = distinct_ids(3, 12, VOCAB_SIZE)
        ids[0, -2:] = ids[1, 3] = ids[2] = model.config.pad_token_id
        assert_close(session.logits(ids), theirs(model, ids))

    def test_without_a_padding_id(self, classes):
        """transformers refuses such a batch, so each row is compared by itself."""
        model, session = classes(pad_token_id=None)
        ids = distinct_ids(3, 20, VOCAB_SIZE)
        mask = right_padded(20, 0, 4, 13)
        with pytest.raises(ValueError, match="no padding token"):
            theirs(model, ids)
        alone = [theirs(model, row[None, : kept.sum()]) for row, kept in zip(ids, mask, strict=True)]
        assert_close(session.logits(ids, mask), np.concatenate(alone))
        rows = [list(row[: kept.sum()]) for row, kept in zip(ids, mask, strict=True)]
        assert_close(np.stack(session._each(rows, np.copy, False, 32, None)), np.concatenate(alone))


class TestClassify:
    @pytest.fixture
    def pipeline(self):
        def make(model, checkpoint):
            tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
            return transformers.pipeline(CLASSES, model=model, tokenizer=tokenizer, device="cpu")

        return make

    @pytest.mark.parametrize(
        ("changes", "function"),
        [
            ({"num_labels": 3}, "softmax"),
            ({"num_labels": 1}, "sigmoid"),
            ({"num_labels": 4, "problem_type": "multi_label_classification"}, "sigmoid"),
            ({"num_labels": 2, "problem_type": "regression"}, "none"),
            ({"num_labels": 1, "problem_type": "regression"}, "none"),
            ({"num_labels": 2, "pad_token_id": None}, "softmax"),
            ({"num_labels": 3, **MOE}, "softmax"),
            ({"id2label": {0: "good", 1: "bad", 2: "neither"}}, "softmax"),
        ],
        ids=str,
    )
    def test_equals_the_pipeline(self, task_export, pipeline, changes, function):
        model, checkpoint, folder = task_export(CLASSES, **WIDE, **changes)
        ours, theirs = load(folder, threads=1), pipeline(model, checkpoint)
        assert ours.function_to_apply == function
        count = len(ours.labels)
        assert self.same(ours.classify(TEXTS), theirs(TEXTS))
        assert self.same(ours.classify(TEXTS[0]), theirs(TEXTS[0]))
        for top_k in (2, None, 9):
            assert self.same(ours.classify(TEXTS, top_k=top_k), theirs(TEXTS, top_k=top_k))
            assert self.same(ours.classify(TEXTS[0], top_k=top_k), theirs(TEXTS[0], top_k=top_k))
        assert self.same(ours.ranked(TEXTS, top_k=1), theirs(TEXTS, top_k=1))
        assert all(len(found) == count for found in ours.classify(TEXTS, top_k=None))
        for name in ("softmax", "sigmoid", "none"):
            expected = theirs(TEXTS, top_k=None, function_to_apply=name)
            assert self.same(ours.classify(TEXTS, top_k=None, function_to_apply=name), expected)
        if function != "none" and count > 1:
            assert len({found["label"] for found in ours.classify(TEXTS)}) > 1  # or nothing was told apart

    def same(self, ours, theirs):
        """Same shape and labels, scores to 1e-4."""
        if isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(self.same, ours, theirs))
        assert ours.keys() == theirs.keys() == {"label", "score"} and isinstance(ours["score"], float)
        return ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) <= 1e-4

    def test_no_score_depends_on_the_other_texts(self, classes):
        _, session = classes(**WIDE)
        texts = [*TEXTS, "Rex was happy, " * 11, "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2]
        together = session.classify(texts, top_k=None, function_to_apply="none")
        for text, found in zip(texts, together, strict=True):
            alone = session.classify(text, top_k=None, function_to_apply="none")
            assert [scored["label"] for scored in alone] == [scored["label"] for scored in found]
            np.testing.assert_allclose(*([s["score"] for s in scores] for scores in (alone, found)), atol=2e-5)

    @pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
    def test_judging_before_the_first_padding(self, tmp_path, target):
        """Old classifiers: a row that begins with the padding id is judged by its last token, padding or not."""
        from safetensors.torch import load_file, save_file

        from doge_export import export

        old = shutil.copytree(GOLDEN / "g4b-additive", tmp_path / "old")
        tensors = {
            name: tensor for name, tensor in load_file(old / "model.safetensors").items() if "lm_head" not in name
        }
        config = json.loads((old / "config.json").read_text())
        tensors["classifier.weight"] = torch.randn(3, config["hidden_size"], generator=torch.Generator().manual_seed(0))
        save_file(tensors, old / "model.safetensors", {"format": "pt"})
        changes = {"architectures": ["DogeForSequenceClassification"], "pad_token_id": 2}
        (old / "config.json").write_text(json.dumps(config | changes))
        session = load(export(old, tmp_path / "out", target=target, max_length=32, validate=False).folder, threads=1)
        assert session.manifest.architecture["first_pad_pooling"]
        rows = [[2, 9, 8], [5, 6, 7, 8, 9, 10, 11], [5, 2, 7], [2], [7], [5]]
        together = session.classify(rows, top_k=None, function_to_apply="none")
        assert self.same(together, [session.classify(row, top_k=None, function_to_apply="none") for row in rows])
        assert self.same(together[2], together[5])

    def test_extreme_logits_give_no_warnings(self, classes, monkeypatch, recwarn):
        _, session = classes()
        monkeypatch.setattr(session, "_run", lambda rows: [np.array([-1e4, 0, 1e4], np.float32) for _ in rows])
        for function, expected in [("sigmoid", [1, 0.5, 0]), ("softmax", [1, 0, 0])]:
            found = session.classify("x", top_k=None, function_to_apply=function)
            assert [scored["score"] for scored in found] == expected
            assert found[0]["label"] == "LABEL_2"
        assert not recwarn.list


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


CALLS = {
    WRITING: ["generate", "stream", "chat", "decoder"],
    FEATURES: ["hidden_states", "embed"],
    CLASSES: ["classify"],
}


class TestWrongTask:
    @pytest.mark.parametrize("task", CALLS)
    def test_says_what_the_folder_is_for(self, task_export, task):
        folder = task_export(task).folder
        session = load(folder, threads=1)
        assert session.task == task
        command = {WRITING: "generate", FEATURES: "embed", CLASSES: "classify"}[task]
        for needed, calls in CALLS.items():
            for call in calls:
                assert hasattr(session, call) == (needed == task)
                if needed == task:
                    continue
                with pytest.raises(DogeExportError) as caught:
                    getattr(session, call)
                assert str(caught.value) == (
                    f"{call} needs a folder exported for {needed}, and {folder} was exported for {task}: "
                    f"use `doge-export {command}`, or export the checkpoint with --task {needed}"
                )

    def test_hidden_states_have_no_logits(self, task_export):
        with pytest.raises(DogeExportError, match="logits needs a folder exported for text-generation"):
            load(task_export(FEATURES).folder, threads=1).logits([1])

    def test_other_names_are_as_usual(self, task_export):
        session = load(task_export(FEATURES).folder, threads=1)
        with pytest.raises(AttributeError, match="'FeatureSession' object has no attribute 'nonsense'") as caught:
            _ = session.nonsense
        assert not isinstance(caught.value, DogeExportError)


def test_a_manifest_without_a_task_is_a_language_model(task_export, tmp_path):
    folder = shutil.copytree(task_export(WRITING).folder, tmp_path / "old")
    manifest = json.loads((folder / "doge_export.json").read_text())
    del manifest["task"], manifest["assumptions"]
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    assert isinstance(load(folder, threads=1), Session)


@pytest.mark.parametrize("labels", [None, [], "ab", [1, 2]])
def test_a_classifier_without_labels_is_one_line(task_export, tmp_path, labels):
    folder = shutil.copytree(task_export(CLASSES).folder, tmp_path / "damaged")
    manifest = json.loads((folder / "doge_export.json").read_text())
    manifest["architecture"]["labels"] = labels
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    with pytest.raises(DogeExportError, match=r"doge_export\.json names no labels"):
        load(folder)


def test_a_session_is_a_context_manager_and_runs_no_more_behind_it(task_export):
    with load(task_export(WRITING).folder, threads=1) as session:
        assert session.decoder.max_batch is None
        assert len(session.generate([5, 6, 7], max_new_tokens=2).token_ids) > 0
    with pytest.raises(DogeExportError, match="this session was closed; load its folder again"):
        session.generate([5, 6, 7], max_new_tokens=2)
    with load(task_export(FEATURES).folder, threads=1) as features:
        assert features.embed("Hello!").shape[0] == 1


def test_an_old_name_of_a_precision_is_refused_with_the_new_one(task_export):
    with pytest.raises(DogeExportError, match="precision float32 is called fp32"):
        load(task_export(WRITING).folder, precision="float32")
