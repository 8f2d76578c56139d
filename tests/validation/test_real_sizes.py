"""Every published Doge at its size, in the spelling of each generation it was published in, with random weights.

Exported and validated against PyTorch. Takes minutes each.
"""

import json
import sys

import pytest
from older_doge import PUBLISHED, make_checkpoint

from doge_export import export
from doge_export.validation import validate


def distinct():
    """Name and generation of every architecture; models that differ in their weights' values only are told together."""
    names = {}
    for name, generations in PUBLISHED.items():
        for generation, model in generations.items():
            names.setdefault((generation, model.cdmoe, json.dumps(model.config)), []).append(name)
    return [pytest.param(same[0], key[0], id=f"{'+'.join(same)}-{key[0]}") for key, same in names.items()]


ALWAYS = {"one-shot prefill", "cached decode", "left-padded batch", "greedy generation"}
# Two forms of router have the same tensors; the user says which.
SAID = {("120M-MoE", "G4b"): "M6"}


def written(name, generation, folder):
    """The checkpoint, and what a user says of it."""
    make_checkpoint.make(name, folder, generation)
    return folder, {"cdmoe": SAID.get((name, generation))}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "generation"), distinct())
def test_a_published_size_agrees_with_pytorch(tmp_path, name, generation):
    model, said = written(name, generation, tmp_path / "model")
    export(model, tmp_path / "out", max_length=2064, validate=False, **said)
    verdict = validate(tmp_path / "out")
    sys.stdout.write(f"{name} {generation}: {verdict.summary_line()}\n")  # for whoever runs this with -s
    assert verdict.passed, verdict.render_text()
    reached = {check.name for check in verdict.checks if check.passed}
    assert reached >= ALWAYS
    if (name, generation) == ("20M", "G7"):  # dearer ones may be left out for their cost, which the verdict says
        assert "beyond trained length" in reached


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "generation"), [("22M", "G1"), ("20M", "G4b"), ("20M", "G5"), ("20M", "G7"), ("20M-MoE", "G4b")], ids=str
)
def test_the_portable_graph_agrees_too(tmp_path, name, generation):
    model, said = written(name, generation, tmp_path / "model")
    export(model, tmp_path / "out", target="portable", max_length=2064, validate=False, **said)
    verdict = validate(tmp_path / "out")
    assert verdict.passed, verdict.render_text()
    assert {check.name for check in verdict.checks if check.passed} >= ALWAYS
