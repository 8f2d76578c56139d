"""Logits and classes of exported folders, against transformers' models and pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from doge_runs import distinct_ids, left_padded
from random_doge import MAX_LENGTH, MOE
from task_answers import CLASSES, TEXTS, TRAINED, WIDE, assert_close, right_padded, theirs
from task_models import VOCAB_SIZE

from doge_export.runtime import ClassificationSession, load

GOLDEN = Path(__file__).parents[1] / "golden"


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
