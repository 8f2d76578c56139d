"""Older generations: a right export passes against the module, and each mechanism that is wrong or missing fails."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from manifests import minimal_manifest
from onnx import numpy_helper
from validation_subjects import ModelSession

from doge_export import export
from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.identify import Assumptions
from doge_export.model import DogeForExport
from doge_export.validation import validate

GOLDEN = Path(__file__).parents[1] / "golden"
LOGITS = {"one-shot prefill", "chunked prefill", "cached decode", "left-padded batch"}
WINDOW = "beyond keep_window_size"
SHORT = 24
"""Tokens that every check of LOGITS has room in."""


class OldSession(ModelSession):
    """The module as the subject, of another architecture than the checkpoint's; spoil(module) changes it."""

    def __init__(self, name, *, spoil=None, routing="reference", max_length=64, moe=None, assume=None, **changes):
        opened = open_checkpoint(GOLDEN / name, assumed=Assumptions(**(assume or {})))
        of = dataclasses.replace(opened.architecture, **changes)
        if moe:
            of = dataclasses.replace(of, moe=dataclasses.replace(of.moe, **moe))
        self.model = DogeForExport.from_tensors(of, opened.tensors, routing, max_length)
        if spoil is not None:
            with torch.no_grad():
                spoil(self.model)
        mixes = opened.architecture.moe is not None and opened.architecture.moe.mixes_tokens
        self.manifest = minimal_manifest(
            str(GOLDEN / name), assumptions=assume or {}, cdmoe_routing=routing if mixes else None
        )
        self.max_length, self.answer, self.cache = max_length, list, None
        self.decoder = SimpleNamespace(cache_snapshot=self._snapshot)


def failed(session):
    verdict = validate("folder", session=session)
    assert verdict.reference["library"] == "doge-export"
    return {check.name for check in verdict.checks if check.passed is False}


def another_share(model):
    for layer in model.model.layers:
        layer.self_attn.ratio_mask = dataclasses.replace(layer.self_attn.ratio_mask, ratio=0.25)


def more_rows(model):
    for layer in model.model.layers:
        layer.self_attn.v_proj.num_values_per_head += 1


def one_more_key(model):
    for layer in model.model.layers:
        layer.self_attn.keep_window_size += 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("g1-inner-function", {"rotates_keys": True}),
        ("g1-inner-function", {"spoil": more_rows}),
        ("g1-inner-function", {"moe": {"variant": "M1"}}),  # the weight outside of silu
        ("g4b-additive-ratio", {"spoil": another_share}),
        ("g4b-moe-m1", {"moe": {"num_experts_per_tok": 3}}),
    ],
    ids=["keys turned", "rows picked", "weights outside", "another share", "experts picked"],
)
def test_a_mechanism_that_is_wrong_fails(name, wrong):
    assert failed(OldSession(name, max_length=SHORT, **wrong)) >= LOGITS


def test_a_wrong_window_of_the_fifth_generation_fails_only_there():
    found = failed(OldSession("g5-topk", spoil=one_more_key))
    assert WINDOW in found and not found & LOGITS


def test_ranks_read_as_keys_fail():
    def unranked(model):
        for layer in model.model.layers:
            layer.mlp.router_gate.ranks = False

    assert failed(OldSession("g4b-moe-m6", max_length=SHORT, assume={"cdmoe": "M6"}, spoil=unranked)) >= LOGITS


def test_the_module_is_told_of_the_routing():
    session = OldSession("g4b-moe-m7", routing="per-token", max_length=SHORT)
    assert not failed(session)
    session.manifest = dataclasses.replace(session.manifest, cdmoe_routing="reference")
    found = failed(session)
    assert {"one-shot prefill", "left-padded batch"} <= found and "cached decode" not in found


def test_a_hard_mask_that_hides_is_validated(tmp_path):
    """G3 with a negative A, as no training leaves it: keys vanish, and a session that keeps them fails."""
    from task_checkpoints import changed

    name = "model.layers.1.self_attn.A"
    negative = {name: open_checkpoint(GOLDEN / "g4b-additive").tensors[name] * 0 - torch.tensor([1.0, 0.0, 0.5, -1.0])}
    folder = changed(GOLDEN / "g3b-hard-mask", tmp_path / "hides", add=negative)
    opened = open_checkpoint(folder)
    assert opened.architecture.score == "threshold"
    session = OldSession("g3b-hard-mask", max_length=SHORT)
    session.model = DogeForExport.from_tensors(opened.architecture, opened.tensors, max_length=SHORT)
    session.manifest = minimal_manifest(str(folder))
    assert not failed(session)
    session.model.model.layers[1].self_attn.A.data.abs_()
    assert failed(session) >= LOGITS


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("g1-inner-function", "portable"),
        ("g4b-additive-ratio", "onnxruntime"),
        ("g4b-moe-m6", "onnxruntime"),
        ("g5-topk", "portable"),
    ],
)
def test_an_exported_folder_passes_and_a_changed_weight_fails(tmp_path, name, target):
    out = tmp_path / "out"
    given = {"cdmoe": "M6"} if name.endswith("m6") else {}
    result = export(GOLDEN / name, out, target=target, **given)
    assert result.verdict.passed and result.manifest.validation["reference"]["library"] == "doge-export"
    verdict = validate(out)  # opens the checkpoint as the export did
    assert verdict.passed and verdict.to_dict()["checks"] == result.verdict.to_dict()["checks"]
    path = shutil.copytree(out, tmp_path / "changed") / "onnx/model.onnx"
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == "model.layers.0.input_layernorm.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, path)
    verdict = validate(tmp_path / "changed")
    assert {check.name for check in verdict.checks if check.passed is False} >= LOGITS
    assert all("first diverging layer: 0" in check.note for check in verdict.checks if check.passed is False)
