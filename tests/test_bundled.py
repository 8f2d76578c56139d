"""The models that come with the package: what they say is what transformers makes of them, token for token."""

import pytest
import torch
from transformers import AutoTokenizer, DogeForCausalLM

import doge_export
from doge_export.assets import BUNDLED, bundled
from doge_export.checkpoint.source import locate

PROMPTS = [
    "Once upon a time",
    "One day, a girl named Mia",
    "Tom has a red ball.",
    "Hey how are you doing?",
    "The cat",
    "There was a fox",
    "Ben and Lily went to the park.",
]


@pytest.fixture(scope="module", params=BUNDLED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def reference(name):
    return DogeForCausalLM.from_pretrained(bundled(name), dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def sessions(name, bundled_folder):
    return {target: doge_export.load(bundled_folder(name, target)) for target in ("onnxruntime", "portable")}


@pytest.mark.parametrize(
    ("prompt", "new_tokens"),
    [
        *((prompt, 128) for prompt in PROMPTS[:2]),
        *((prompt, 72) for prompt in PROMPTS[2:]),
        *(pytest.param(prompt, 200, marks=pytest.mark.slow) for prompt in PROMPTS),
    ],
)
def test_greedy_text_is_that_of_transformers(prompt, new_tokens, name, reference, sessions):
    """Far enough for keys to be selected."""
    ids = AutoTokenizer.from_pretrained(bundled(name))(prompt, return_tensors="pt").input_ids
    expected = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )[0, ids.shape[1] :].tolist()
    assert len(expected) == new_tokens > reference.config.keep_window_size
    for target, session in sessions.items():
        assert session.tokenizer.encode(prompt) == ids[0].tolist()
        found = session.generate(prompt, max_new_tokens=new_tokens, do_sample=False, eos_token_id=[])
        assert found.token_ids == expected, target


def test_key_selection_happens_and_ties_do_not_decide(name, reference):
    """A is away from zero in every layer, so that selection is real. In the first layer, where copies of a token have
    equal scores, they must be interchangeable, or the text would hang on transformers' choice among equals."""
    for layer in reference.model.layers:
        assert layer.self_attn.A.abs().min() > 0.1
    assert reference.model.layers[0].self_attn.q_norm.weight.abs().max() == 0
    assert all(layer.self_attn.q_norm.weight.abs().min() > 0 for layer in reference.model.layers[1:])


def test_is_found_by_its_name(name):
    assert locate(name).folder == bundled(name)


def test_size(name):
    assert sum(file.stat().st_size for file in bundled(name).iterdir()) <= 4_000_000
