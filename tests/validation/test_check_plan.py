import dataclasses

import numpy as np
import pytest
import torch
from random_doge import MOE
from transformers import DogeForCausalLM

from doge_export.checkpoint import open_checkpoint
from doge_export.validation.check_plan import Run, SubjectTraits, plan_checks

TRAITS = SubjectTraits(
    max_length=4096,
    vocab_size=32768,
    keep_window_size=2048,
    trained_length=2048,
    num_hidden_layers=8,
    attention_size=256,
    multiplications_per_token=13_000_000,
    reserved_ids=frozenset({0, 1, 2}),
    pad_id=2,
    mixes_tokens=False,
)


def traits(**changes):
    return dataclasses.replace(TRAITS, **changes)


def by_name(**changes):
    return {check.name: check for check in plan_checks(traits(**changes))}


@pytest.mark.parametrize("max_length", [1, 2, 3, 5, 16, 64, 65, 100, 300])
@pytest.mark.parametrize("window", [0, 1, 4, 64, 500])
@pytest.mark.parametrize("trained", [2, 40, 256])
@pytest.mark.parametrize("mixes", [False, True])
def test_every_run_fits_and_every_check_runs_or_says_why_not(max_length, window, trained, mixes):
    given = traits(max_length=max_length, keep_window_size=window, trained_length=trained, mixes_tokens=mixes)
    for check in plan_checks(given):
        assert bool(check.runs) != bool(check.not_run)
        for run in check.runs:
            assert all(size > 0 for size in run.chunks)
            assert run.length == max(run.rows) <= max_length and min(run.rows) > 0
            assert run.length > check.beyond
    first = plan_checks(given)[:4]
    assert all(run.length <= min(max_length, window or max_length, trained) for check in first for run in check.runs)


def test_padding_does_not_hide_in_the_window():
    check = by_name(max_length=200, keep_window_size=64, trained_length=256)["beyond keep_window_size"]
    rows = check.runs[0].rows
    assert len(rows) == 2 and rows[0] > rows[1] > 64


def test_costly_checks_say_what_they_would_cost():
    checks = by_name(multiplications_per_token=320_000_000)
    for name in ("beyond keep_window_size", "beyond trained length"):
        assert "multiply-adds" in checks[name].not_run
    assert not by_name(multiplications_per_token=50_000_000)["beyond keep_window_size"].not_run
    assert "logits" in by_name(vocab_size=128_256)["beyond keep_window_size"].not_run


def test_too_few_ids_for_distinct_tokens_is_said():
    assert "distinct ids" in by_name(vocab_size=2000)["beyond keep_window_size"].not_run


def test_tokens_are_distinct_ordinary_left_padded_and_seeded():
    run = Run("r", (30, 10), (30,))
    ids, mask = run.batch(TRAITS, 0)
    assert ids.dtype == mask.dtype == np.int64
    assert mask.tolist() == [[1] * 30, [0] * 20 + [1] * 10]
    assert (ids[mask == 0] == 2).all()
    for row, tokens in enumerate((30, 10)):
        real = ids[row, mask[row] == 1]
        assert len(set(real.tolist())) == tokens and real.min() > 2
    assert (run.batch(TRAITS, 0)[0] == ids).all()
    assert (run.batch(TRAITS, 1)[0] != ids).any()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, MOE], ids=["dense", "tied", "moe"])
def test_the_cost_of_a_token_is_every_matrix_once_and_its_experts(checkpoint, changes):
    folder = checkpoint(**changes)
    model = DogeForCausalLM.from_pretrained(folder)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    routed = 2 * 4 * 64 * 3 if changes == MOE else 0
    given = SubjectTraits.of(open_checkpoint(folder), 72, "reference")
    assert given.multiplications_per_token == linear + routed
    assert given.reserved_ids == {0, 1, 2} and given.mixes_tokens is (changes == MOE)


def test_padding_on_the_right_and_padding_ids():
    ids, mask = Run("r", (5, 2), (5,), side="right").batch(TRAITS, 0)
    assert mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]] and ids[1, 2:].tolist() == [2, 2, 2]
    ids, mask = Run("r", (5,), (5,), padding_ids=(2,)).batch(TRAITS, 0)
    assert mask.all() and (ids[0] == 2).tolist() == [False, False, True, False, False]


def test_what_looks_ahead_says_that_pieces_matter():
    checks = by_name(looks_ahead=True, ratio=True, keep_window_size=0)
    assert "read together" in checks["chunked prefill"].note and "read together" in checks["cached decode"].note
    assert "padding is ranked" in checks["left-padded batch"].note
    assert checks["beyond keep_window_size"].not_run.endswith("every check leaves out keys")
    assert not by_name()["chunked prefill"].note
