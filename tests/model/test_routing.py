"""How CDMoE's router is read: as transformers does, mixing tokens and rows, or token by token."""

from __future__ import annotations

import numpy as np
import pytest
from doge_runs import (
    assert_equal_to_rounding,
    distinct_ids,
    left_padded,
    module_logits,
    module_of,
    transformers_logits,
)
from random_doge import CONFIG, MOE, random_model


@pytest.fixture(scope="module")
def model():
    return random_model(**MOE)


@pytest.fixture(scope="module")
def reference(model):
    return module_of(model, cdmoe_routing="reference")


@pytest.fixture(scope="module")
def per_token(model):
    return module_of(model, cdmoe_routing="per-token")


def test_per_token_equals_transformers_fed_token_by_token(model, per_token):
    length = CONFIG["keep_window_size"] + 15
    ids = distinct_ids(3, length)
    steps = [transformers_logits(model, row[None], chunks=[1] * length) for row in ids]
    assert_equal_to_rounding(module_logits(per_token, ids), np.concatenate(steps))


def test_both_agree_on_a_single_token_of_a_single_row(reference, per_token):
    ids = distinct_ids(1, 12)
    np.testing.assert_array_equal(
        module_logits(reference, ids, chunks=[1] * 12), module_logits(per_token, ids, chunks=[1] * 12)
    )


def test_they_differ_on_several_tokens(reference, per_token):
    ids = distinct_ids(1, 12)
    apart = np.abs(module_logits(reference, ids) - module_logits(per_token, ids)).max(axis=-1)
    assert (apart > 0.01).all()


def test_reference_routing_reads_later_tokens(reference):
    """Why it is documented as not causal."""
    ids = distinct_ids(1, 12)
    changed = ids.copy()
    changed[0, -1] += 1
    apart = np.abs(module_logits(reference, ids) - module_logits(reference, changed)).max(axis=-1)
    assert (apart[0, :-1] > 0.01).any()


def test_reference_routing_reads_other_rows(reference):
    ids = distinct_ids(2, 12)
    alone = module_logits(reference, ids[:1])
    assert np.abs(module_logits(reference, ids)[:1] - alone).max() > 0.01


def test_reference_routing_reads_padding(reference):
    ids, mask = distinct_ids(1, 12), left_padded(12, 4)
    alone = module_logits(reference, ids[:, 4:])
    assert np.abs(module_logits(reference, ids, mask)[:, 4:] - alone).max() > 0.01


def test_reference_routing_depends_on_what_is_read_together(reference):
    ids = distinct_ids(1, 12)
    assert np.abs(module_logits(reference, ids) - module_logits(reference, ids, chunks=[6, 6])).max() > 0.01
