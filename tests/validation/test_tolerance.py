"""The bars of 16 bits: what they let pass, what they do not, and which folders have them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from manifests import GRAPH, minimal_manifest

from doge_export.validation.comparison import compare
from doge_export.validation.tolerance import BFLOAT16, FLOAT16, FLOAT32, tolerance_of

POSITIONS, VOCAB = 300, 50


@pytest.fixture
def reference():
    return np.random.default_rng(0).normal(size=(1, POSITIONS, VOCAB)).astype(np.float32)


def compared(reference, subject):
    ids = np.zeros((1, POSITIONS), np.int64)
    return compare(reference, subject, ids == 0, ids, label="x", tolerance=FLOAT16)


def stray(reference, count, gap=0.1):
    """Logits whose argmax is another at so many positions, where the two best are `gap` apart."""
    reference, subject = reference.copy(), reference.copy()
    for position in range(count):
        reference[0, position, :2] = 5.0 + gap, 5.0
        subject[0, position, :2] = 5.0, 5.0 + gap
    return compared(reference, subject)


def test_rounding_of_float16_passes_and_is_no_float32(reference):
    rounded = reference.astype(np.float16).astype(np.float32) + 0.003
    assert compared(reference, rounded).passed
    assert not compare(
        reference, rounded, np.ones((1, POSITIONS), bool), np.zeros((1, POSITIONS), int), label="x"
    ).passed


@pytest.mark.parametrize("worst", [0.3, np.nan, np.inf])
def test_one_logit_too_far_off_fails(reference, worst):
    subject = reference.copy()
    subject[0, 7, 3] += worst
    comparison = compared(reference, subject)
    assert not comparison.passed and comparison.beyond_tolerance.sum() == 1


def test_a_few_other_choices_pass_and_many_do_not(reference):
    assert stray(reference, 1).passed
    too_many = stray(reference, 2)  # of 300
    assert not too_many.passed and too_many.beyond_tolerance.sum() == 2
    assert stray(reference, 20, gap=0.005).passed  # near ties are no choices


def test_a_mean_too_far_off_fails_where_no_position_does(reference):
    noise = np.random.default_rng(1).uniform(-0.2, 0.2, reference.shape).astype(np.float32)
    noise[np.arange(VOCAB) == reference.argmax(-1)[..., None]] = 0.2
    comparison = compared(reference, reference + noise)
    assert not comparison.beyond_tolerance.any() and comparison.kl.mean() > 1e-3
    assert not comparison.passed


def test_folders_have_the_bars_of_their_precision():
    def of(target, precision):
        graphs = {"x": dataclasses.replace(GRAPH, precision=precision)}
        return tolerance_of(minimal_manifest(target=target, graphs=graphs))

    assert of("tensorrt", "fp16") == FLOAT16 and of("tensorrt", "bf16") == BFLOAT16
    assert of("tensorrt", "tf32") == FLOAT16
    assert of("tensorrt", "fp32") == of("onnxruntime", "fp32") == FLOAT32
    assert "mean_kl" in FLOAT16.to_dict() and [*FLOAT32.to_dict()] == ["max_abs_over_std", "near_tie"]
    assert "0.25 of std" in str(FLOAT16) and str(FLOAT32).endswith("within 0.0001")
