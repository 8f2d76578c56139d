"""Laws of every composition: what a later token, the cache, padding and neighbours may change and what they may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compositions import COMPOSITIONS, FULLY_MASKING, MIXING, random_module
from doge_runs import assert_equal_to_rounding, distinct_ids, left_padded, module_logits

LENGTH, VOCABULARY = 24, 96


@pytest.fixture(scope="module", params=COMPOSITIONS)
def module(request):
    return random_module(COMPOSITIONS[request.param])


def test_a_later_token_changes_no_earlier_logit(module):
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    changed = ids.copy()
    changed[0, 15] = (ids[0, 15] + 7) % VOCABULARY
    before, after = module_logits(module, ids), module_logits(module, changed)
    np.testing.assert_array_equal(before[:, :15], after[:, :15])
    assert np.abs(before[:, 15:] - after[:, 15:]).max() > 1e-3


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [10, 1, 13]], ids=["cached", "pieces"])
def test_pieces_equal_one_shot(module, chunks):
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    assert_equal_to_rounding(module_logits(module, ids, chunks=chunks), module_logits(module, ids))


def test_padding_and_neighbours_change_nothing(module):
    ids, mask = distinct_ids(2, LENGTH, VOCABULARY), left_padded(LENGTH, 0, 6)
    together = module_logits(module, ids, mask)
    assert_equal_to_rounding(together[:1], module_logits(module, ids[:1]))
    assert_equal_to_rounding(together[1:, 6:], module_logits(module, ids[1:, 6:]))


@pytest.mark.parametrize("name", [*COMPOSITIONS, *FULLY_MASKING, *MIXING])
def test_every_parameter_matters(name):
    """Else a comparison with this composition would prove less than it seems to."""
    module = random_module((COMPOSITIONS | FULLY_MASKING | MIXING)[name])
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    before = module_logits(module, ids)
    for key, parameter in module.named_parameters():
        if name == "hard threshold" and "dt_proj" in key:
            continue  # exp(A * softplus(.)) < 1 asks for the sign of A, but for what rounds to 1
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(torch.randn_like(kept) * kept.std(correction=0).clamp(min=0.1))
            moved = np.abs(module_logits(module, ids) - before).max()
            parameter.copy_(kept)
        assert moved > 1e-4, key


@pytest.mark.parametrize("name", MIXING)
def test_reference_routing_mixes_and_per_token_routing_does_not(name):
    ids = distinct_ids(2, LENGTH, VOCABULARY)
    mixed = random_module(MIXING[name])
    assert np.abs(module_logits(mixed, ids)[:1] - module_logits(mixed, ids[:1])).max() > 1e-3 or name in ("M5", "M6")
    assert np.abs(module_logits(mixed, ids, chunks=[1] * LENGTH) - module_logits(mixed, ids)).max() > 1e-3
    alone = random_module(MIXING[name], cdmoe_routing="per-token")
    assert_equal_to_rounding(module_logits(alone, ids)[:1], module_logits(alone, ids[:1]))
    assert_equal_to_rounding(module_logits(alone, ids, chunks=[1] * LENGTH), module_logits(alone, ids))
    # One token of one row is routed by itself, whatever the view.
    assert_equal_to_rounding(module_logits(mixed, ids[:1, :1]), module_logits(alone, ids[:1, :1]))


@pytest.mark.parametrize("name", FULLY_MASKING)
def test_a_selection_that_may_fully_mask_a_token_depends_on_what_is_read_together(name):
    """Why such exports read prompts in one piece: `chunkable_length` is 0."""
    module = random_module(FULLY_MASKING[name])
    assert module.architecture.may_fully_mask_rows
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    assert np.abs(module_logits(module, ids, chunks=[1] * LENGTH) - module_logits(module, ids)).max() > 1e-3
