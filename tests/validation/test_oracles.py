"""Both oracles say the same where both can be asked, and each judges what it should."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from random_doge import MOE
from task_checkpoints import changed, classifier

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.architecture import RatioMask
from doge_export.checkpoint.identify import Assumptions
from doge_export.validation.check_plan import Run, SubjectTraits
from doge_export.validation.module_oracle import PROVEN_CDMOE, PROVEN_GENERATIONS, ModuleOracle, is_proven
from doge_export.validation.references import in_transformers, load_oracle
from doge_export.validation.transformers_oracle import TransformersOracle

GOLDEN = Path(__file__).parents[1] / "golden"
ROUNDING = 3e-5
"""Of a standard deviation."""


def batches(opened, sides):
    traits = SubjectTraits.of(opened, 64, None)
    yield Run("beyond the window", (40,), (30, 1, 9)).batch(traits, 0), (30, 1, 9)
    for side in sides:
        yield Run("padded", (24, 20, 7), (24,), side=side).batch(traits, 1), (24,)


def agree(ours, theirs, mask, *, gaps):
    at = mask == 1
    scale = theirs.logits[at].std()
    assert np.abs(ours.logits - theirs.logits)[at].max() <= ROUNDING * scale
    for mine, other in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values], strict=True):
        mine, other = (np.moveaxis(cached, 2, 1)[at] for cached in (mine, other))
        assert np.abs(mine - other).max() <= ROUNDING * other.std()
    assert np.isfinite(theirs.gaps[at]).any() == np.isfinite(ours.gaps[at]).any()
    finite = np.isfinite(theirs.gaps) & (mask == 1)
    np.testing.assert_allclose(ours.gaps[finite], theirs.gaps[finite], rtol=gaps, atol=1e-4)
    assert ours.ranked == theirs.ranked


@pytest.mark.parametrize(
    ("changes", "routing"), [({}, "reference"), (MOE, "reference"), (MOE, "per-token")], ids=["dense", "moe", "apart"]
)
@pytest.mark.parametrize("task", ["text-generation", "feature-extraction", "text-classification"])
def test_the_module_says_what_transformers_says(checkpoint, tmp_path, changes, routing, task):
    folder = checkpoint(**changes)
    if task == "text-classification":
        folder = classifier(folder, tmp_path / "classifier")
    opened = open_checkpoint(folder, assumed=Assumptions(task=task))
    ours, theirs = ModuleOracle(opened, routing), TransformersOracle(opened, routing)
    generates = task == "text-generation"
    for (ids, mask), chunks in batches(opened, ["left"] if generates else ["left", "right"]):
        chunks = chunks if generates else (sum(chunks),)
        # Fed token by token, transformers measures a gap by the standard deviation of one token's routing scores.
        gaps = 0.75 if routing == "per-token" else 0.02
        agree(ours.run(ids, mask, chunks), theirs.run(ids, mask, chunks), mask, gaps=gaps)
    if generates:
        prompt = ids[0].tolist()
        assert ours.generate(prompt, 12) == theirs.generate(prompt, 12)


@pytest.mark.parametrize("kind", [ModuleOracle, TransformersOracle])
def test_rounding_at_the_input_moves_the_answer_a_little_and_repeatably(checkpoint, kind):
    oracle = kind(open_checkpoint(checkpoint()))
    ids, mask = np.arange(10, 20)[None], np.ones((1, 10), np.int64)
    run = oracle.run(ids, mask, (10,))
    moved = oracle.sensitivity(ids, mask, (10,), run)
    assert (moved > 0).all() and moved.max() < 1e-3 * run.logits.std()
    assert (oracle.sensitivity(ids, mask, (10,), run) == moved).all()
    assert (oracle.run(ids, mask, (10,)).logits == run.logits).all()  # the noise does not stay


def test_transformers_judges_what_it_has(checkpoint, tmp_path):
    assert isinstance(load_oracle(open_checkpoint(checkpoint()), None), TransformersOracle)
    second = open_checkpoint(changed(checkpoint(), tmp_path / "doge2", config={"model_type": "doge2"}))
    assert second.architecture.generation == "G6b"
    oracle = load_oracle(second, None)
    assert isinstance(oracle, TransformersOracle) and oracle.describe()["note"] == ""
    ids, mask = np.arange(10, 20)[None], np.ones((1, 10), np.int64)
    named = load_oracle(open_checkpoint(checkpoint()), None)
    assert (oracle.run(ids, mask, (10,)).logits == named.run(ids, mask, (10,)).logits).all()


def test_experts_that_are_named_otherwise_are_not_in_transformers(checkpoint):
    architecture = open_checkpoint(checkpoint(**MOE)).architecture
    assert in_transformers(architecture)
    older = dataclasses.replace(architecture, moe=dataclasses.replace(architecture.moe, variant="M4"))
    assert not in_transformers(older)


def test_transformers_reads_old_spellings_of_the_names_it_knows(checkpoint, tmp_path):
    source = open_checkpoint(checkpoint())
    residuals = [name for name in source.tensors if name.endswith("_residual")]
    spelt = {f"{name}.weight": source.tensors[name] for name in residuals}
    opened = open_checkpoint(changed(checkpoint(), tmp_path / "spelt", drop=residuals, add=spelt))
    ids, mask = np.arange(10, 20)[None], np.ones((1, 10), np.int64)
    told = [TransformersOracle(each).run(ids, mask, (10,)).logits for each in (opened, source)]
    assert (told[0] == told[1]).all()


@pytest.mark.parametrize("name", ["g1-inner-function", "g4b-additive", "g5-moe-m7"])
def test_the_module_judges_older_generations_and_says_so(name):
    opened = open_checkpoint(GOLDEN / name)
    oracle = load_oracle(opened, "reference")
    described = oracle.describe()
    assert isinstance(oracle, ModuleOracle) and described["library"] == "doge-export"
    assert f"generation {opened.architecture.generation}" in described["note"]
    assert "is not in transformers" in described["note"]
    assert "tests/golden holds it against the answers" in described["note"]


def test_what_the_golden_files_do_not_cover_is_not_claimed(checkpoint):
    note = ModuleOracle(open_checkpoint(checkpoint(), assumed=Assumptions(generation="G8"))).describe()["note"]
    assert "not held against its answers" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "threshold"},
        {"generation": "G4b", "score": "none"},
        {"ratio_mask": RatioMask(0.3, 24, True, True)},
        {"task": "feature-extraction"},
        {"generation": "G4a"},
    ],
    ids=str,
)
def test_nor_mechanisms_of_a_covered_generation(changes):
    covered = open_checkpoint(GOLDEN / "g4b-additive").architecture
    assert is_proven(covered)
    assert not is_proven(dataclasses.replace(covered, **changes))


def test_proven_is_what_there_are_golden_files_of():
    folders = [folder for folder in GOLDEN.iterdir() if folder.is_dir()]
    # Of M6 without a bias only the folder's name tells.
    opened = [
        open_checkpoint(folder, assumed=Assumptions(cdmoe="M6" if "-m6" in folder.name else None)).architecture
        for folder in folders
    ]
    assert {each.generation for each in opened} == set(PROVEN_GENERATIONS)
    assert {each.moe.variant for each in opened if each.moe} == set(PROVEN_CDMOE)


@pytest.mark.parametrize(
    ("name", "ids"),
    [("g1-inner-function", 30), ("g4b-additive-ratio", 30), ("g4b-moe-m1", 30), ("g4b-moe-m6", 30), ("g5-topk", 40)],
)
def test_every_hard_selection_has_gaps(name, ids):
    opened = open_checkpoint(GOLDEN / name, assumed=Assumptions(cdmoe="M6" if "-m6" in name else None))
    oracle = load_oracle(opened, "reference")
    batch = Run("r", (ids,), (ids,)).batch(SubjectTraits.of(opened, 64, None), 0)
    gaps = oracle.run(*batch, (ids,)).gaps
    assert 0 < gaps[0, -1] < 1
    assert np.isinf(load_oracle(open_checkpoint(GOLDEN / "g4b-additive"), None).run(*batch, (ids,)).gaps).all()


def test_a_tie_between_rows_of_inner_values_is_found_at_its_token():
    opened = open_checkpoint(GOLDEN / "g1-inner-function")
    oracle = load_oracle(opened, None)
    ids, mask = Run("r", (20,), (20,)).batch(SubjectTraits.of(opened, 64, None), 3)
    assert oracle.run(ids, mask, (20,)).gaps.min() > 1e-5
    inner = oracle._layers[1].self_attn.v_proj
    match = oracle._matched[1][0, 0, 7]  # of head 0 at token 7
    order = match.argsort(descending=True)
    last, first = (int(order[inner.num_values_per_head + step]) for step in (-1, 0))
    with torch.no_grad():
        inner.keys[0, :, first] *= match[last] / match[first]  # the best miss is now as good as the last pick
    gaps = oracle.run(ids, mask, (20,)).gaps[0]
    assert gaps[6] > 1e-5 and (gaps[7:] < 3e-6).all()


def test_a_share_of_all_keys_is_one_ranking_for_the_whole_call():
    opened = open_checkpoint(GOLDEN / "g4b-additive-ratio")  # 0.3 of the keys
    oracle = load_oracle(opened, None)
    ids, mask = Run("r", (20,), (20,)).batch(SubjectTraits.of(opened, 64, None), 3)
    whole, stepped = (oracle.run(ids, mask, chunks).gaps[0] for chunks in ((20,), (1,) * 20))
    assert (whole == whole[0]).all() and np.isfinite(whole[0])
    assert np.isinf(stepped[:6]).all() and np.isfinite(stepped[6:]).all()  # below the lowest of six there is nothing
