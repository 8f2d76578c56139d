"""The validator on folders the exporter writes: they pass, and a changed weight in the file is found."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from doge_export.validation import validate

KINDS = [
    {"target": "onnxruntime"},
    {"target": "portable"},
    {"target": "onnxruntime", "moe": True},
    {"target": "portable", "moe": True, "cdmoe_routing": "per-token"},
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


@kinds
def test_an_exported_folder_passes_every_check(exported, kind):
    verdict = validate(exported(**kind))
    assert verdict.passed, verdict.render_text()
    assert [check.status for check in verdict.checks] == ["passed"] * 7
    assert max(check.metrics["max_abs"] for check in verdict.checks) > 0
    assert set(verdict.subject["files"]) == {"onnx/model.onnx"}


@kinds
def test_a_weight_changed_in_the_file_fails_and_is_located(exported, kind, tmp_path):
    folder = shutil.copytree(exported(**kind), tmp_path / "changed")
    path = folder / "onnx/model.onnx"
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == "model.layers.0.input_residual")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, path)
    verdict = validate(folder)
    assert not verdict.passed
    assert all(check.passed is False for check in verdict.checks)
    assert all("first diverging layer: 1 (keys by" in check.note for check in verdict.checks)
