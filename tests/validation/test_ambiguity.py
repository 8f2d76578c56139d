import numpy as np
import pytest
import torch

from doge_export.validation.ambiguity import routing_gaps, selection_gaps, spread


def test_selection_gap_is_that_between_the_last_kept_and_the_first_left_of_what_a_token_sees():
    scores = np.array([[[5.0, 4.0, 2.0, 1.0, 3.0]]])
    gaps = selection_gaps([scores], np.ones((1, 5), np.int64), 2, [5])
    assert np.isinf(gaps[0, :2]).all()  # within the window nothing is selected
    assert gaps[0, 2:] == pytest.approx([(4 - 2) / 4, (4 - 2) / 4, (4 - 3) / 4])


def test_selection_begins_when_the_cache_exceeds_the_window_and_padding_is_never_kept():
    scores = np.array([[[9.0, 9.0, 3.0, 2.0, 1.0]]])
    mask = np.array([[0, 0, 1, 1, 1]])
    gaps = selection_gaps([scores], mask, 2, [5])
    assert np.isinf(gaps[0, :4]).all()
    assert gaps[0, 4] == pytest.approx((2 - 1) / 2)
    assert np.isinf(selection_gaps([scores], mask, 5, [5])).all()


def test_the_closest_head_of_the_closest_layer_decides():
    first = np.array([[[4.0, 2.0, 1.0], [4.0, 2.0, 1.5]]])
    second = np.array([[[1.0, 1.0, 1.0], [4.0, 2.0, 1.0]]])
    assert selection_gaps([first, second], np.ones((1, 3), np.int64), 2, [1, 1, 1])[0, 2] == 0.0
    assert selection_gaps([first], np.ones((1, 3), np.int64), 2, [1, 1, 1])[0, 2] == pytest.approx(0.25)


@pytest.mark.parametrize("picks", [1, 3, 8, 15])
def test_routing_gap_is_that_of_all_pair_sums(picks):
    logits = torch.randn(2, 5, 4, generator=torch.manual_seed(picks))
    sums = (logits[0][:, :, None] + logits[1][:, None, :]).flatten(1).sort(descending=True).values
    expected = (sums[:, picks - 1] - sums[:, picks]) / logits.std()
    assert routing_gaps([logits], picks) == pytest.approx(expected.numpy(), abs=1e-6)
    assert np.isinf(routing_gaps([logits], 16)).all()  # every expert is picked


def test_a_gap_reaches_all_later_positions_and_with_mixing_the_whole_call_in_every_row():
    gaps = np.full((2, 6), 1.0)
    gaps[0, 3] = 0.1
    assert spread(gaps, [2, 4], mixes_tokens=False).tolist() == [[1, 1, 1, 0.1, 0.1, 0.1], [1] * 6]
    assert spread(gaps, [2, 4], mixes_tokens=True).tolist() == [[1, 1, 0.1, 0.1, 0.1, 0.1]] * 2
