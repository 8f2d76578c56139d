import numpy as np
import pytest
import torch

from doge_export.validation.ambiguity import (
    pick_gaps,
    rank_gaps,
    ratio_gaps,
    routing_gaps,
    selection_gaps,
    spread,
    threshold_gaps,
)


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


@pytest.mark.parametrize("picks", [1, 3, 7])
def test_rank_gap_is_that_of_the_sums_or_of_a_picked_rank_to_its_neighbours(picks):
    scores, indices = torch.randn(5, 4, generator=torch.manual_seed(picks)).sort(dim=-1, descending=True)
    found = rank_gaps([(scores, indices.float())], picks)
    for token in range(5):
        x = scores[token].double().tolist()
        pairs = sorted(((x[i] + int(indices[token, j]), j) for i in range(4) for j in range(4)), reverse=True)
        beside = [abs(x[j] - x[n]) for _, j in pairs[:picks] for n in (j - 1, j + 1) if 0 <= n < 4]
        expected = min(pairs[picks - 1][0] - pairs[picks][0], *beside) / float(scores.std())
        assert found[token] == pytest.approx(expected, abs=1e-5)


def test_pick_gap_is_that_of_the_closest_head():
    match = torch.tensor([[[[5.0, 3.0, 2.0], [1.0, 3.0, 2.0]], [[9.0, 1.0, 0.5], [7.0, 4.0, 1.0]]]])  # [1, 2, 2, 3]
    std = float(match.std())
    assert pick_gaps([match], 1)[0] == pytest.approx([2 / std, 1 / std])
    assert pick_gaps([match], 2)[0] == pytest.approx([0.5 / std, 1 / std])
    assert np.isinf(pick_gaps([match], 3)).all()


def test_ratio_gap_is_that_of_the_token_nearest_to_the_bound():
    scores = np.array([[[1.0, 2.0, 4.0, 8.0, 7.0]]])
    everywhere = np.ones((1, 5), np.int64)
    assert np.isinf(ratio_gaps([scores], everywhere, 0)).all()
    assert np.isinf(ratio_gaps([scores], everywhere, 1)).all()  # nothing is below the lowest
    assert ratio_gaps([scores], everywhere, 3) == pytest.approx([(4 - 2) / 4])
    # Padding is ranked, but which padding falls does not matter: 4 is the bound, and 8 is the token nearest to it.
    assert ratio_gaps([scores], np.array([[1, 0, 0, 1, 0]]), 3) == pytest.approx([(4 - 1) / 4])
    assert np.isinf(ratio_gaps([np.ones((1, 1, 5))], everywhere, 3)).all()  # A is 0: equal in every computation
    tied = np.array([[[1.0, 1.0, 2.0]]])
    assert ratio_gaps([tied], np.ones((1, 3), np.int64), 2) == 0.0


def test_threshold_gap_is_the_distance_of_exp_from_one():
    steps = np.array([[[-1e-5, -1.0, 0.0, 2e-6], [-2.0, -1e-7, 0.0, 1.0]]])
    gaps = threshold_gaps([steps], np.array([[1, 1, 1, 1]]))
    assert gaps[0] == pytest.approx([1e-5, 1e-7, np.inf, 2e-6], rel=1e-3)
    assert np.isinf(threshold_gaps([steps], np.array([[0, 1, 1, 1]]))[0, 0])


def test_where_tokens_look_ahead_a_gap_reaches_its_whole_row_of_the_call():
    gaps = np.full((2, 6), 1.0)
    gaps[0, 3] = 0.1
    ahead = spread(gaps, [2, 4], mixes_tokens=False, looks_ahead=True)
    assert ahead.tolist() == [[1, 1, 0.1, 0.1, 0.1, 0.1], [1] * 6]
