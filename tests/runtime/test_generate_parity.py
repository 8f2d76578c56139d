"""Token for token what transformers generates, with transformers' own Doge behind the Decoder protocol."""

from __future__ import annotations

import numpy as np
import pytest

from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.prediction import predictions
from doge_export.runtime.session import Session

VOCAB_SIZE = 300
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [42], [100, 3, 100, 3]]


class TransformersDecoder:
    """Runs the whole text again for every token: slow, and nothing of ours in it."""

    vocab_size = VOCAB_SIZE
    max_length = chunkable_length = 128

    def __init__(self, model) -> None:
        self._model = model
        self.reset()

    def reset(self, batch_size: int = 1) -> None:
        self._ids = self._mask = np.zeros((batch_size, 0), np.int64)

    @property
    def batch_size(self) -> int:
        return self._ids.shape[0]

    @property
    def length(self) -> int:
        return self._ids.shape[1]

    def rewind(self, length: int) -> None:
        self._ids, self._mask = self._ids[:, :length], self._mask[:, :length]

    def recallable(self, length: int) -> int:
        return length

    def mark(self) -> None:
        """Any length can be gone back to."""

    def forward(self, input_ids, attention_mask=None, num_logits_to_keep=0):
        import torch

        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        self._ids = np.concatenate([self._ids, input_ids], axis=1)
        self._mask = np.concatenate([self._mask, mask], axis=1)
        ids, mask = torch.from_numpy(self._ids), torch.from_numpy(self._mask)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = self._model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return logits[:, -(num_logits_to_keep or input_ids.shape[1]) :].numpy()

    def predict(self, input_ids, attention_mask=None):
        return predictions(self.forward(input_ids, attention_mask, 1))


@pytest.fixture(scope="module")
def model():
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.DogeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        keep_window_size=128,  # never exceeded: where equal keys tie, transformers selects differently cached and not
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        attn_implementation="eager",
    )
    return transformers.DogeForCausalLM(config).eval()


@pytest.fixture(scope="module")
def session(model, tmp_path_factory):
    return Session(
        TransformersDecoder(model), None, {}, GenerationConfig(eos_token_ids=(1,)), tmp_path_factory.mktemp("x")
    )


def transformers_generate(model, prompts, **settings):
    """New ids of every row, without what follows its eos token."""
    import torch

    length = max(map(len, prompts))
    ids = torch.tensor([[2] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(ids, attention_mask=mask, do_sample=False, **settings)[:, length:].tolist()
    eos = settings.get("eos_token_id", [1])
    ends = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in output]
    return [row[:end] for row, end in zip(output, ends, strict=True)]


@pytest.mark.parametrize("penalty", [1.0, 1.2, 0.9])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "left-padded batch"])
def test_greedy_equals_transformers(model, session, prompts, penalty):
    expected = transformers_generate(model, prompts, repetition_penalty=penalty, max_new_tokens=40)
    found = session.generate(prompts, repetition_penalty=penalty, max_new_tokens=40)
    assert [row.token_ids for row in found] == expected
    assert len({tuple(row) for row in expected}) == len(prompts)


def test_several_eos_tokens_equal_transformers(model, session):
    free = transformers_generate(model, PROMPTS, max_new_tokens=40)
    eos = [free[0][9], free[2][4]]
    expected = transformers_generate(model, PROMPTS, max_new_tokens=40, eos_token_id=eos)
    found = session.generate(PROMPTS, max_new_tokens=40, eos_token_id=eos)
    assert [row.token_ids for row in found] == expected
    assert [row.finish_reason for row in found].count("eos") >= 2


def test_max_length_counts_the_padded_prompt_as_transformers_does(model, session):
    free = session.generate(PROMPTS, max_new_tokens=11, eos_token_id=[299])
    limited = Session(session.decoder, None, {}, GenerationConfig(max_length=18, eos_token_ids=(299,)), session.folder)
    expected = transformers_generate(model, PROMPTS, max_length=18, eos_token_id=[299])
    assert [row.token_ids for row in limited.generate(PROMPTS)] == expected == [row.token_ids for row in free]
