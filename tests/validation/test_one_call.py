"""Validation of feature-extraction and text-classification: what is right passes, each single mistake fails."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from manifests import minimal_manifest
from onnx import numpy_helper
from random_doge import MAX_LENGTH, MOE
from task_checkpoints import changed, classifier

from doge_export import export
from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.identify import Assumptions
from doge_export.model import MODULES
from doge_export.validation import validate
from doge_export.validation.report import render_html

GOLDEN = Path(__file__).parents[1] / "golden"
WINDOW, TRAINED = "beyond keep_window_size", "beyond trained length"
SINGLE, LEFT, RIGHT, IDS = "single rows", "left-padded batch", "right-padded batch", "padding ids among the tokens"
FEATURES = {SINGLE, LEFT, RIGHT, WINDOW, TRAINED}
CLASSES = FEATURES | {IDS}


class TaskSession:
    """The project's module as the subject. spoil(module) changes it, mask(mask) and answer(output) what it does."""

    def __init__(self, folder, task, *, routing="reference", spoil=None, mask=None, answer=None, **architecture):
        opened = open_checkpoint(folder, assumed=Assumptions(task=task))
        of = dataclasses.replace(opened.architecture, **architecture)
        self.task, self.max_length = task, MAX_LENGTH
        self.module = MODULES[task].from_tensors(of, opened.tensors, routing, MAX_LENGTH)
        self.mask, self.answer = mask or (lambda mask: mask), answer or (lambda output: output)
        mixes = of.moe and of.moe.mixes_tokens
        self.manifest = minimal_manifest(str(folder), task=task, cdmoe_routing=routing if mixes else None)
        if spoil is not None:
            with torch.no_grad():
                spoil(self.module)
        setattr(self, "hidden_states" if task == "feature-extraction" else "logits", self._run)

    @torch.inference_mode()
    def _run(self, input_ids, attention_mask):
        output = self.module(torch.from_numpy(input_ids), self.mask(torch.from_numpy(attention_mask)))
        return self.answer(output.numpy())


def outcome(verdict):
    found = {check.name: check.status for check in verdict.checks}
    return {status: {name for name in found if found[name] == status} for status in ("passed", "failed", "not run")}


def failures(session):
    verdict = validate("folder", session=session)
    assert not verdict.passed
    return outcome(verdict)["failed"]


DENSE, EXPERTS, APART = ({}, "reference"), (MOE, "reference"), (MOE, "per-token")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        *itertools.product([0, 1, 2, 5], [DENSE, EXPERTS]),
        (0, APART),
        (5, APART),
        # Fed token by token for the same features; the head after them is that of [1-moe] and [2-moe].
        pytest.param(1, APART, marks=pytest.mark.slow),
        pytest.param(2, APART, marks=pytest.mark.slow),
    ],
    ids=lambda value: {id(DENSE): "dense", id(EXPERTS): "moe", id(APART): "apart"}.get(id(value)),
)
def test_the_truth_passes_every_check(checkpoint, tmp_path, labels, kind):
    changes, routing = kind
    folder, task = checkpoint(num_hidden_layers=2, **changes), "feature-extraction"
    if labels:
        folder, task = classifier(folder, tmp_path / "c", labels=labels), "text-classification"
    verdict = validate("folder", session=TaskSession(folder, task, routing=routing))
    assert outcome(verdict)["passed"] == (CLASSES if labels else FEATURES), verdict.render_text()
    assert verdict.reference["library"] == "transformers" and verdict.subject["task"] == task
    assert max(check.metrics["max_abs"] for check in verdict.checks) < 1e-4
    assert ("argmax" in verdict.summary_line()) == (labels > 1)  # hidden states and a regression have no best
    assert "PASSED" in verdict.render_text()
    if kind is DENSE and labels != 2:  # the report is the same whatever the experts are and how many labels
        assert "PASSED" in render_html(verdict)
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("g1-inner-function", ""),
        ("g1-inner-function", "classifier"),
        ("g4b-additive-ratio", ""),
        ("g4b-additive-ratio", "classifier"),
        ("g4b-moe-m6", "score"),
        ("g5-topk", "score"),
    ],
)
def test_older_generations_are_judged_by_the_module(tmp_path, name, head):
    folder, task = GOLDEN / name, "feature-extraction"
    if head:
        folder, task = classifier(folder, tmp_path / "c", head=head), "text-classification"
    verdict = validate("folder", session=TaskSession(folder, task))
    assert verdict.passed and verdict.reference["library"] == "doge-export", verdict.render_text()
    assert {SINGLE, LEFT, RIGHT} <= outcome(verdict)["passed"]


def test_without_a_padding_id_rows_are_classified_alone(checkpoint, tmp_path):
    folder = classifier(checkpoint(), tmp_path / "c", pad_token_id=None)
    verdict = validate("folder", session=TaskSession(folder, "text-classification"))
    assert outcome(verdict) == {"passed": {SINGLE, WINDOW, TRAINED}, "failed": set(), "not run": {LEFT, RIGHT, IDS}}
    assert "transformers classifies one row at a time" in verdict.render_text()


def test_features_are_those_of_the_decoder_whatever_head_it_has(checkpoint, tmp_path):
    bare = {name.removeprefix("model."): t for name, t in open_checkpoint(checkpoint()).tensors.items()}
    names = [*open_checkpoint(checkpoint()).tensors]
    bare.pop("lm_head.weight")
    folders = [
        changed(checkpoint(), tmp_path / "bare", drop=names, add=bare, config={"architectures": ["DogeModel"]}),
        classifier(checkpoint(), tmp_path / "c"),
    ]
    for folder in folders:
        assert validate("folder", session=TaskSession(folder, "feature-extraction")).passed


def test_ignoring_padding_fails_where_it_stands_before_the_tokens(checkpoint):
    session = TaskSession(checkpoint(), "feature-extraction", mask=torch.ones_like)
    assert failures(session) == {LEFT, WINDOW}


def test_positions_that_follow_the_mask_fail():
    def restart(module):
        def forward(ids, mask):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            return module.model(ids, mask, positions, module.empty_cache(len(ids)))[0]

        module.forward = forward

    # Rotary positions are relative, so that a shift of a row shows only where keys are not turned: in G1.
    assert failures(TaskSession(GOLDEN / "g1-inner-function", "feature-extraction", spoil=restart)) == {LEFT}


def test_a_classifier_that_reads_the_last_place_fails_behind_padding(checkpoint, tmp_path):
    def last(module):
        module._pooled = lambda ids, mask: torch.full((len(ids),), ids.shape[1] - 1)

    folder = classifier(checkpoint(), tmp_path / "c")
    assert failures(TaskSession(folder, "text-classification", spoil=last)) == {RIGHT, IDS}


def test_a_classifier_that_trusts_the_mask_alone_fails_at_padding_ids(checkpoint, tmp_path):
    folder = classifier(checkpoint(), tmp_path / "c")
    assert failures(TaskSession(folder, "text-classification", pad_token_id=None)) == {IDS}


def test_the_first_and_the_last_padding_are_told_apart(tmp_path):
    folder = classifier(GOLDEN / "g4b-additive", tmp_path / "c", head="classifier")
    assert IDS in failures(TaskSession(folder, "text-classification", first_pad_pooling=False))


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_a_wrong_weight_fails_everywhere(checkpoint, tmp_path, task):
    folder = checkpoint() if task == "feature-extraction" else classifier(checkpoint(), tmp_path / "c", labels=1)

    def spoil(module):
        module.model.norm.weight[3] *= 1.05

    failed = failures(TaskSession(folder, task, spoil=spoil))
    assert failed == (FEATURES if task == "feature-extraction" else CLASSES)


def test_a_wrong_window_fails_only_there(checkpoint):
    def spoil(module):
        for layer in module.model.layers:
            layer.self_attn.keep_window_size += 1

    assert WINDOW in failures(TaskSession(checkpoint(), "feature-extraction", spoil=spoil))


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_what_is_no_number_or_of_another_shape_fails(checkpoint, tmp_path, task):
    folder = checkpoint() if task == "feature-extraction" else classifier(checkpoint(), tmp_path / "c")
    every = FEATURES if task == "feature-extraction" else CLASSES
    assert failures(TaskSession(folder, task, answer=lambda output: output * np.nan)) == every
    assert failures(TaskSession(folder, task, answer=lambda output: output[..., :-1])) == every


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_an_exported_folder_passes_and_a_changed_weight_fails(checkpoint, tmp_path, task, target):
    folder = checkpoint(num_hidden_layers=2)
    if task == "text-classification":
        folder = classifier(folder, tmp_path / "c")
    out = tmp_path / "out"
    result = export(folder, out, task=task, target=target, max_length=MAX_LENGTH)
    assert result.verdict.passed and result.manifest.validation["passed"]
    assert outcome(validate(out))["passed"] == (FEATURES if task == "feature-extraction" else CLASSES)
    model = onnx.load(out / "onnx/model.onnx")
    tensor = next(each for each in model.graph.initializer if each.name == "model.layers.0.input_residual")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, out / "onnx/model.onnx")
    assert not validate(out).passed
