"""Every setting against transformers' generate: the scores it processes at every step, and the tokens it takes."""

from __future__ import annotations

import numpy as np
import pytest

from doge_export.errors import DogeExportError, RunFailed
from doge_export.numerics import softmax
from doge_export.runtime.engine.engine_decoder import BestTokens
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.prediction import Prediction
from doge_export.runtime.sampling import Sampler, filtered

VOCAB_SIZE = 150
PROMPT = [5, 6, 7, 8, 5, 6, 9, 5]
SHORT, LONG = 12, 200

GREEDY = {
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(2, 100))},
    "min_length": {"min_length": 16, "eos_token_id": list(range(2, 100))},
    "min_length below the prompt": {"min_length": 3},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1, "max_new_tokens": 100},
    "no_repeat_ngram_size 2": {"no_repeat_ngram_size": 2},
    "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
    "encoder_no_repeat_ngram_size 1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size 2": {"encoder_no_repeat_ngram_size": 2},
    "suppress_tokens": {"suppress_tokens": [*range(2, 60), 999]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(100))},
    "bad_words_ids": {
        "bad_words_ids": [[token] for token in range(40)] + [[a, b] for a in range(150) for b in (90, 91)]
    },
    "bad_words_ids and eos": {"bad_words_ids": [[1], [2], [3]], "eos_token_id": [1, 3]},
    "forced_eos_token_id": {"forced_eos_token_id": 1},
    "forced_eos_token_id of several": {"forced_eos_token_id": [4, 1]},
    "sequence_bias": {"sequence_bias": [[[t], 2.5] for t in range(20)] + [[[t, 60], 30.0] for t in range(150)]},
    "sequence_bias of long prefixes": {"sequence_bias": [[[5, 6, 7, 8, 5, 6, 9, 5, 11], 50.0], [[9] * 12, 9.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.05), "eos_token_id": [1, 17]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.7},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "remove_invalid_values": {"remove_invalid_values": True, "suppress_tokens": [7]},
    "everything": {
        "sequence_bias": [[[9], 2.5], [[10, 60], 30.0]],
        "encoder_repetition_penalty": 1.2,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4,
        "bad_words_ids": [[33], [34, 35]],
        "min_new_tokens": 6,
        "exponential_decay_length_penalty": (3, 1.01),
        "suppress_tokens": [50, 51],
        "begin_suppress_tokens": [60, 61],
        "forced_eos_token_id": 1,
    },
}
SAMPLED = {
    "top_h": {"top_h": 0.4},
    "top_h of nearly all": {"top_h": 0.99},
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "eta_cutoff after top_k": {"eta_cutoff": 0.3, "top_k": 20},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "temperature": {"temperature": 1.7},
    "everything sampled": {
        **GREEDY["everything"],
        "temperature": 1.3,
        "top_h": 0.9,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.95,
        "epsilon_cutoff": 0.01,
        "eta_cutoff": 0.02,
    },
}


@pytest.fixture(scope="module")
def model():
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.DogeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        keep_window_size=256,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        attn_implementation="eager",
    )
    return transformers.DogeForCausalLM(config).eval()


def follow(model, settings, length, *, prompt=PROMPT, do_sample=False, seed=3):
    """Generate with transformers, and compare our scores and our choice at each of its steps. Returns its new ids."""
    import torch

    settings = {"max_new_tokens": length, "eos_token_id": 1, "top_k": 0, **settings}
    settings["max_new_tokens"] = min(length, settings["max_new_tokens"])
    ours = GenerationConfig().override(do_sample=do_sample, **settings)
    torch.manual_seed(seed)
    ids = torch.tensor([prompt])
    theirs = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=do_sample,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    new = theirs.sequences[0, len(prompt) :].tolist()
    for step, (logits, scores) in enumerate(zip(theirs.logits, theirs.scores, strict=True)):
        so_far = prompt + new[:step]
        # One sampler for each step: it has read what transformers has written, whatever our draws would have been.
        sampler = Sampler(ours, prompt, np.random.SeedSequence(step), max_new_tokens=settings["max_new_tokens"])
        sampler.read(new[:step])
        logits, scores = logits[0].numpy(), scores[0].numpy()
        processed = sampler.processed(logits)
        if do_sample:
            kept, values = filtered(Prediction(processed), ours)
            processed = np.full(VOCAB_SIZE, -np.inf, np.float32)
            processed[kept] = values
        if not ours.remove_invalid_values:
            scores = np.minimum(scores, np.finfo(np.float32).max)
        np.testing.assert_array_equal(processed > -np.inf, scores > -np.inf, err_msg=str(so_far))
        np.testing.assert_allclose(processed, scores, rtol=2e-6, atol=0)
        expected = drawn(scores, step) if do_sample else new[step]
        assert sampler(Prediction(logits)) == expected
    return new


def drawn(scores: np.ndarray, seed: int) -> int:
    """The token of transformers' scores at the point of the distribution that the sampler's seed gives."""
    cumulative = np.cumsum(softmax(scores), dtype=np.float64)
    return int(np.searchsorted(cumulative, np.random.default_rng(seed).random() * cumulative[-1], side="right"))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_equals_transformers(model, name):
    follow(model, GREEDY[name], SHORT)


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_equals_transformers(model, name):
    follow(model, SAMPLED[name], SHORT, do_sample=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_equals_transformers_for_200_tokens(model, name, free):
    found = follow(model, GREEDY[name], LONG)
    if name not in UNSEEN:  # else nothing would be proved
        assert found != free


UNSEEN = {"min_length below the prompt", "bad_words_ids and eos", "remove_invalid_values"}
UNSEEN |= {"encoder_no_repeat_ngram_size 1", "encoder_no_repeat_ngram_size 2"}  # drawn texts meet the prompt's ids
"""Settings that forbid nothing of what the model writes greedily."""


@pytest.fixture(scope="module")
def free(model):
    """What the model writes without any setting."""
    return follow(model, {}, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*GREEDY, *SAMPLED])
def test_sampled_equals_transformers_for_200_tokens(model, name, seed):
    follow(model, {**GREEDY, **SAMPLED}[name], LONG, do_sample=True, seed=seed)


@pytest.mark.parametrize("settings", [{}, {"begin_suppress_tokens": list(range(70))}], ids=str)
def test_forced_bos_comes_after_a_prompt_of_one_token(model, settings):
    forced = {"forced_bos_token_id": 33, **settings}
    assert follow(model, forced, SHORT, prompt=[5])[0] == 33
    assert follow(model, forced, SHORT)[0] != 33


def one(config: GenerationConfig, scores, prompt=(3,), **arguments) -> int:
    prediction = scores if isinstance(scores, Prediction) else Prediction(np.array(scores, np.float32))
    return Sampler(config, list(prompt), np.random.SeedSequence(0), **arguments)(prediction)


def test_min_length_counts_the_padding_of_a_batch_as_transformers_does():
    config = GenerationConfig(min_length=4, eos_token_ids=(0,))
    assert [one(config, [2, 1, 0], padding=padding) for padding in (0, 2, 3)] == [1, 1, 0]


def test_nothing_left_to_choose_is_told():
    for do_sample in (True, False):
        with pytest.raises(DogeExportError, match="forbid every token"):
            one(GenerationConfig(suppress_tokens=(0, 1), do_sample=do_sample), [1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True}, {"repetition_penalty": 2.0}, {"suppress_tokens": (0,)}], ids=str
)
def test_logits_that_are_not_finite_fail_the_run(settings, bad):
    scores = np.full(4, bad, np.float32) if bad == -np.inf else np.array([1, 2, bad, 0], np.float32)
    with pytest.raises(RunFailed, match="gives logits that are not finite"):
        one(GenerationConfig(**settings), scores)


def test_invalid_values_are_removed_where_the_config_says_so():
    assert one(GenerationConfig(remove_invalid_values=True), [-1, np.nan, -2]) == 1
    assert one(GenerationConfig(remove_invalid_values=True), [-1, np.inf, 2]) == 1
    assert one(GenerationConfig(remove_invalid_values=True, do_sample=True), [-1, np.inf, 2]) == 1


@pytest.mark.parametrize("scores", [[1, 5, 3, 5], [-1, -5, -3, -1], [0, 0, -1, -2], [0, -1e30, 1e30, 1]], ids=str)
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-46, 1e-45, 1e-40, 1.2e-38])
def test_the_smallest_temperatures_are_greedy(scores, temperature):
    config = GenerationConfig(do_sample=True, temperature=temperature)
    best = np.flatnonzero(np.array(scores) == max(scores)).tolist()
    found = [
        Sampler(config, [], np.random.SeedSequence(seed))(Prediction(np.array(scores, np.float32)))
        for seed in range(20)
    ]
    assert set(found) <= set(best)


@pytest.mark.parametrize("penalty", [1e-45, 1e-30, 1e30, 3e38])
def test_extreme_penalties_give_tokens(penalty):
    settings = GenerationConfig(repetition_penalty=penalty, encoder_repetition_penalty=penalty)
    assert one(settings, [3, 0, -2, 1], prompt=(0, 1, 2)) in range(4)
    decay = GenerationConfig(exponential_decay_length_penalty=(0, 1e30), eos_token_ids=(1,))
    sampler = Sampler(decay, [0], np.random.SeedSequence(0))
    assert [sampler(Prediction(np.array([3, 1, 2], np.float32))) for _ in range(40)] == [0] + [1] * 39


def test_an_engines_best_tokens_give_way_to_all_logits():
    """The engine keeps logits on the GPU and gives the K best: not enough for a processor that forbids them."""
    logits = np.arange(20, dtype=np.float32)
    asked = []

    def everything():
        asked.append(True)
        return logits

    def best():
        return BestTokens(np.array([18, 19, 17], np.int32), logits[[18, 19, 17]], everything)

    assert one(GenerationConfig(), best()) == 19 and not asked
    assert one(GenerationConfig(do_sample=True, top_k=2), best()) in (18, 19) and not asked
    assert one(GenerationConfig(suppress_tokens=(17, 18, 19)), best()) == 16 and asked
    asked.clear()
    for settings in ({"typical_p": 0.5}, {"top_h": 0.5, "top_k": 2}, {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1}):
        one(GenerationConfig(**{"do_sample": True, "top_k": 0, **settings}), best())
    assert len(asked) == 4
    broken = BestTokens(np.array([1, 2], np.int32), np.array([np.nan, 1], np.float32), lambda: logits * np.nan)
    with pytest.raises(RunFailed, match="not finite"):
        one(GenerationConfig(), broken)
