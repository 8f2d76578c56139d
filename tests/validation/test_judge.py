"""What is set aside, what is left out, and that neither hides a fault."""

from types import SimpleNamespace

import numpy as np
import pytest

from doge_export.validation.ambiguity import DOUBT, TIE
from doge_export.validation.judge import Batch, judge
from doge_export.validation.oracle import ReferenceRun

SURE = 1.0


class Subject:
    """Repeats the reference, plus `error` at position 2 of the batches in `wrong`."""

    def __init__(self, wrong, error=0.5):
        self.wrong, self.error, self.fed = wrong, error, []
        self.decoder = SimpleNamespace(cache_snapshot=lambda: [])

    def logits(self, ids, attention_mask, chunks):
        seed = int(ids[0, 0])
        self.fed.append(seed)
        result = logits(seed)
        if seed in self.wrong:
            result[0, 2, 3] += self.error
        return result


def logits(seed):
    return np.random.default_rng(seed).normal(size=(1, 4, 9))


def drawn(gaps):
    """A draw whose batch `seed` has the gaps `gaps[seed]` by position."""

    def draw(seed):
        reference = ReferenceRun(logits(seed), [], [], np.array([gaps[seed]], float))
        ids = np.full((1, 4), seed)
        return Batch(ids, np.ones_like(ids), (4,), np.ones((1, 4), bool), reference)

    return draw


def oracle(moved=0.0):
    return SimpleNamespace(sensitivity=lambda ids, mask, chunks, reference: np.full(ids.shape, moved))


def test_a_fault_fails_at_once_and_is_not_drawn_again():
    subject = Subject(wrong={0})
    judgement = judge(drawn([[SURE] * 4] * 3), 3, oracle(), subject, label="x")
    assert judgement.passed is False and judgement.set_aside == 0 and subject.fed == [0]


def test_a_fault_behind_a_near_tie_is_set_aside_for_a_batch_without_one():
    subject = Subject(wrong={0})
    gaps = [[SURE, SURE, DOUBT / 2, DOUBT / 2], [SURE] * 4]
    judgement = judge(drawn(gaps), 2, oracle(), subject, label="x")
    assert judgement.passed is True and judgement.set_aside == 1 and subject.fed == [0, 1]


def test_a_near_tie_behind_the_fault_excuses_nothing():
    subject = Subject(wrong={0})
    judgement = judge(drawn([[SURE, SURE, SURE, DOUBT / 2]] * 2), 2, oracle(), subject, label="x")
    assert judgement.passed is False and subject.fed == [0]


@pytest.mark.parametrize(("moved", "passed"), [(1e-4, True), (1e-6, False)], ids=["ill-conditioned", "sound"])
def test_a_small_difference_is_set_aside_only_where_rounding_moves_the_reference(moved, passed):
    subject = Subject(wrong={0}, error=1e-3)
    judgement = judge(drawn([[SURE] * 4] * 2), 2, oracle(moved), subject, label="x")
    assert judgement.passed is passed
    assert subject.fed == ([0, 1] if passed else [0])


def test_doubt_in_every_batch_is_a_failure_with_its_cause():
    judgement = judge(drawn([[SURE] * 4] * 3), 3, oracle(1e-4), Subject(wrong={0, 1, 2}, error=1e-3), label="x")
    assert judgement.passed is False and judgement.set_aside == 2
    assert "one rounding of the embeddings moves the reference itself by up to 1.0e-04" in judgement.fault


def test_what_is_not_finite_is_never_in_doubt():
    subject = Subject(wrong={0}, error=np.nan)
    judgement = judge(drawn([[DOUBT / 2] * 4] * 2), 2, oracle(1.0), subject, label="x")
    assert judgement.passed is False and subject.fed == [0]


def test_ties_that_both_break_alike_are_compared_like_anything_else():
    judgement = judge(drawn([[0.0] * 4]), 1, oracle(), Subject(wrong={}), label="x")
    assert judgement.passed is True and judgement.left_out == 0


def test_when_all_are_in_doubt_the_batch_with_fewest_ties_is_judged_without_them():
    subject = Subject(wrong={0, 1, 2})
    gaps = [[SURE, TIE / 2, 0, 0], [SURE, SURE, TIE / 2, 0], [SURE, 0, 0, 0]]
    judgement = judge(drawn(gaps), 3, oracle(), subject, label="x")
    assert subject.fed == [0, 1, 2]
    assert judgement.passed is True and judgement.comparison.positions == 2 and judgement.left_out == 2
    assert judgement.batch.ids[0, 0] == 1


def test_a_fault_before_the_first_tie_fails_even_if_all_is_in_doubt():
    gaps = [[SURE, DOUBT / 2, DOUBT / 2, TIE / 2]] * 3
    judgement = judge(drawn(gaps), 3, oracle(), Subject(wrong={0, 1, 2}), label="x")
    assert judgement.passed is False and "nearly tied" in judgement.fault


def test_nothing_to_compare_is_neither_passed_nor_failed():
    judgement = judge(drawn([[0.0] * 4]), 1, oracle(), Subject(wrong={0}), label="x")
    assert judgement.passed is None and judgement.left_out == 4
