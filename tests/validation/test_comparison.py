import json
import math

import numpy as np
import pytest

from doge_export.validation.comparison import compare, concatenate
from doge_export.validation.tolerance import LOGITS_TOLERANCE, NEAR_TIE
from doge_export.validation.verdict import CheckResult, Verdict

IDS = np.arange(6).reshape(2, 3) + 100


def logits(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 3, 50)).astype(np.float32)


def compared(subject, reference=None, selected=None):
    reference = logits() if reference is None else reference
    selected = np.ones((2, 3), bool) if selected is None else selected
    return compare(reference, subject, selected, IDS, label="run")


def test_metrics_name_the_worst_position_and_measure_it_in_standard_deviations():
    subject = logits()
    subject[1, 0, 7] += 0.5
    comparison = compared(subject)
    metrics = comparison.metrics()
    assert metrics["worst"] == {"run": "run", "row": 1, "position": 0, "token": 103}
    assert metrics["max_abs"] == pytest.approx(0.5, rel=1e-5)
    assert metrics["mean_abs"] == pytest.approx(0.5 / 300, rel=1e-5)
    assert metrics["reference_std"] == pytest.approx(logits().std(), rel=1e-5)
    assert metrics["beyond_tolerance"] == 1
    assert not comparison.passed
    assert comparison.histogram.sum() == 300


@pytest.mark.parametrize(("scale", "passes"), [(0.99, True), (1.01, False)])
def test_tolerance_is_a_bar_not_a_suggestion(scale, passes):
    reference = logits()
    subject = reference.astype(np.float64)
    subject[0, 2, 4] += scale * LOGITS_TOLERANCE * reference.std(dtype=np.float64)
    assert compared(subject, reference.astype(np.float64)).passed is passes


@pytest.mark.parametrize(("gap", "passes"), [(0.5 * NEAR_TIE, True), (2 * NEAR_TIE, False)])
def test_another_argmax_is_forgiven_only_at_a_near_tie(gap, passes):
    reference = 10 * logits().astype(np.float64)
    reference[0, 0, 3] = reference[0, 0].max() + 1
    reference[0, 0, 4] = reference[0, 0, 3] - gap
    subject = reference.copy()
    subject[0, 0, [3, 4]] = reference[0, 0, [4, 3]]
    comparison = compared(subject, reference)
    assert comparison.max_abs.max() < LOGITS_TOLERANCE * comparison.reference_std
    assert comparison.passed is passes
    metrics = comparison.metrics()
    assert metrics["argmax_agreement"] == pytest.approx(5 / 6)
    assert metrics["argmax_disagreements"] == (0 if passes else 1)
    assert metrics["near_ties_decided_otherwise"] == (1 if passes else 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_fails_and_stays_valid_json(value):
    subject = logits()
    subject[1, 2, 9] = value
    comparison = compared(subject)
    metrics = comparison.metrics()
    assert not comparison.passed
    assert metrics["finite"] is False
    assert metrics["worst"]["row"] == 1 and metrics["worst"]["position"] == 2
    verdict = Verdict((CheckResult("a", "", comparison.passed, metrics, "", comparison),), {}, {})
    assert not verdict.passed
    assert "not finite" in verdict.summary_line() and "not finite" in verdict.render_text()
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_kl_is_that_of_the_softmaxes():
    reference, subject = logits(0), logits(1)
    comparison = compared(subject, reference)
    p = np.exp(reference[0, 1].astype(float)) / np.exp(reference[0, 1].astype(float)).sum()
    q = np.exp(subject[0, 1].astype(float)) / np.exp(subject[0, 1].astype(float)).sum()
    assert comparison.kl[1] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)


def test_only_selected_positions_count():
    subject = logits()
    subject[0, 1] = np.nan
    selected = np.ones((2, 3), bool)
    selected[0, 1] = False
    comparison = compared(subject, selected=selected)
    assert comparison.positions == 5 and comparison.passed
    assert not compared(logits(), selected=np.zeros((2, 3), bool)).passed  # nothing compared proves nothing


def test_concatenation_measures_over_all_runs():
    other = logits(2)
    worse = other.copy()
    worse[0, 0, 0] += 0.25
    whole = concatenate([compared(logits()), compare(other, worse, np.ones((2, 3), bool), IDS, label="second")])
    assert whole.positions == 12
    assert whole.metrics()["worst"]["run"] == "second"
    both = np.concatenate([logits(), other])
    assert whole.reference_std == pytest.approx(both.std(), rel=1e-5)


def test_verdict_passes_only_when_something_passed_and_nothing_failed():
    good, bad, idle = CheckResult("g", "", True), CheckResult("b", "", False), CheckResult("i", "", None, note="why")
    assert Verdict((good, idle), {}, {}).passed
    assert not Verdict((good, bad), {}, {}).passed
    assert not Verdict((idle,), {}, {}).passed
    assert "1 failed" in Verdict((good, bad), {}, {}).summary_line()
    assert Verdict((good, bad), {}, {}).summary_line().endswith(": b")
    assert "i: why" in Verdict((good, idle), {}, {}).render_text()


def test_to_dict_rounds_to_six_digits():
    check = CheckResult("a", "", True, {"x": math.pi * 1e-7, "y": math.nan, "n": np.int64(3).item()})
    assert check.to_dict()["metrics"] == {"x": 3.14159e-07, "y": None, "n": 3}
