"""What holds for any weights of a model whose tokens do not route one another."""

from __future__ import annotations

import numpy as np
import pytest
from doge_runs import assert_equal_to_rounding, distinct_ids, left_padded, module_logits, module_of
from random_doge import MOE, random_model

LENGTH = 40
"""Beyond keep_window_size, within the trained length: past it, dynamic NTK turns every piece by the length so far."""


@pytest.fixture(scope="module", params=["dense", "moe"])
def module(request):
    return module_of(random_model(**(MOE if request.param == "moe" else {})), cdmoe_routing="per-token")


@pytest.mark.parametrize("position", [0, 1, 17, LENGTH - 1])
def test_a_later_token_changes_no_earlier_logit(module, position):
    """Exactly: a key that is not visible has weight 0, and 0 times anything finite adds nothing."""
    ids = distinct_ids(2, LENGTH)
    changed = ids.copy()
    changed[:, position] = (changed[:, position] + 1) % 320
    before, after = module_logits(module, ids), module_logits(module, changed)
    np.testing.assert_array_equal(before[:, :position], after[:, :position])
    assert (before[:, position] != after[:, position]).any()


@pytest.mark.parametrize(
    "chunks",
    [[1] * LENGTH, [39, 1], [1, 39], [20, 20], [7, 13, 1, 1, 18], [21, *[1] * 19]],
    ids=lambda chunks: "-".join(map(str, chunks[:4])),
)
def test_pieces_through_the_cache_equal_one_shot(module, chunks):
    ids = distinct_ids(2, LENGTH)
    assert_equal_to_rounding(module_logits(module, ids, chunks=chunks), module_logits(module, ids))


@pytest.mark.parametrize("chunks", [None, [10, 29, 1]], ids=["whole", "pieces"])
def test_padding_changes_nothing(module, chunks):
    ids = distinct_ids(1, LENGTH)
    padded = module_logits(module, ids, left_padded(LENGTH, 9), chunks)
    assert_equal_to_rounding(padded[:, 9:], module_logits(module, ids[:, 9:]))


def test_what_stands_in_the_padding_changes_nothing(module):
    ids, mask = distinct_ids(1, LENGTH), left_padded(LENGTH, 9)
    changed = ids.copy()
    changed[:, :9] = changed[:, :9][:, ::-1]
    np.testing.assert_array_equal(module_logits(module, ids, mask)[:, 9:], module_logits(module, changed, mask)[:, 9:])


def test_batch_neighbours_change_nothing(module):
    ids, mask = distinct_ids(3, LENGTH), left_padded(LENGTH, 0, 5, 12)
    together = module_logits(module, ids, mask, [30, 1, 9])
    for row, begin in enumerate((0, 5, 12)):
        assert_equal_to_rounding(together[row : row + 1, begin:], module_logits(module, ids[row : row + 1, begin:]))
