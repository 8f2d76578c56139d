"""Sampling against transformers' logits processors, on wide rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.numerics import softmax
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.logits_processors import penalise_repetition
from doge_export.runtime.prediction import Prediction
from doge_export.runtime.sampling import Sampler, filtered

VOCAB_SIZE = 2000


def config(**values) -> GenerationConfig:
    return GenerationConfig(**{"do_sample": True, "top_k": 0, **values})


def transformers_scores(scores: np.ndarray, prompt: list[int], settings: GenerationConfig) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as theirs

    processors = theirs.LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(theirs.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1:
        processors.append(theirs.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(theirs.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(theirs.MinPLogitsWarper(settings.min_p))
    return processors(torch.tensor([prompt]), torch.from_numpy(scores.copy())[None])[0].numpy()


def our_scores(scores: np.ndarray, prompt: list[int], settings: GenerationConfig) -> np.ndarray:
    if settings.repetition_penalty != 1:
        scores = penalise_repetition(scores, np.unique(prompt), settings.repetition_penalty)
    ids, kept = filtered(Prediction(scores), settings)
    dense = np.full(VOCAB_SIZE, -np.inf, np.float32)
    dense[ids] = kept
    return dense


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config(temperature=0.7),
        config(temperature=2.0, top_k=1),
        config(top_k=50),
        config(top_k=VOCAB_SIZE + 5),
        config(top_p=0.9),
        config(top_p=0.01),
        config(top_p=0.0),
        config(top_p=0.999),
        config(min_p=0.05),
        config(min_p=1.0),
        config(repetition_penalty=1.3),
        config(repetition_penalty=0.8),
        config(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
    ],
    ids=str,
)
def test_what_may_be_sampled_equals_transformers(settings, spread):
    random = np.random.default_rng(1)
    for _ in range(20):
        scores = (random.normal(size=VOCAB_SIZE) * spread).astype(np.float32)
        prompt = random.integers(0, VOCAB_SIZE, 30).tolist()
        np.testing.assert_array_equal(
            our_scores(scores, prompt, settings), transformers_scores(scores, prompt, settings)
        )


def test_equal_scores_at_the_edge_of_top_k_all_stay():
    scores = np.array([1, 3, 2, 2, 2, 0], np.float32)
    ids, _ = filtered(Prediction(scores), config(top_k=2))
    assert ids.tolist() == [1, 2, 3, 4]


def test_greedy_takes_the_lowest_of_equal_ids_as_torch_does():
    scores = np.zeros(100, np.float32)
    scores[[17, 60]] = 5
    assert Sampler(GenerationConfig(), [], np.random.SeedSequence(0))(Prediction(scores)) == 17


def test_penalty_leaves_the_decoders_logits_alone():
    scores = np.array([1, -1], np.float32)
    sampler = Sampler(GenerationConfig(repetition_penalty=4.0), [0, 1], np.random.SeedSequence(0))
    assert sampler(Prediction(scores)) == 0
    assert scores.tolist() == [1, -1]


def test_penalty_counts_new_tokens_once_and_only_the_seen():
    sampler = Sampler(GenerationConfig(repetition_penalty=2.0), [3], np.random.SeedSequence(0))
    scores = np.array([8, 7, 5, 12], np.float32)  # 3 was in the prompt: 12 / 2
    assert [sampler(Prediction(scores)) for _ in range(4)] == [0, 1, 3, 3]


def test_drawn_frequencies_follow_the_probabilities():
    scores = np.log(np.array([0.5, 0.05, 0.3, 0.15], np.float32))
    sampler = Sampler(config(), [], np.random.SeedSequence(7))
    drawn = np.bincount([sampler(Prediction(scores)) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.05, 0.3, 0.15], atol=0.015)  # four standard deviations


def test_a_seed_repeats_and_another_differs():
    scores = np.zeros(1000, np.float32)

    def draw(seed):
        sampler = Sampler(config(), [], np.random.SeedSequence(seed))
        return [sampler(Prediction(scores)) for _ in range(10)]

    assert draw(1) == draw(1) != draw(2)


@given(
    values=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_something_is_always_left_and_the_best_is_in_it(values, temperature, top_k, top_p, min_p):
    scores = np.array(values, np.float32)
    settings = config(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, kept = filtered(Prediction(scores), settings)
    assert len(ids) == len(set(ids.tolist())) >= 1
    assert scores[ids].max() == scores.max()
    np.testing.assert_allclose(softmax(kept).sum(), 1, rtol=1e-5)
    assert Sampler(settings, [], np.random.SeedSequence(0))(Prediction(scores)) in ids
