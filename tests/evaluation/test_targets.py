"""A random model that is read beyond its trained length, by both targets: pieces and shared prefixes end there."""

from __future__ import annotations

import math

import pytest
import torch
from test_choices import lm_eval
from test_perplexity import TEXT
from transformers import AutoTokenizer

import doge_export

MAX_LENGTH, TRAINED = 72, 48


@pytest.fixture(params=["onnxruntime", "portable"])
def both(request, task_export):
    # Keys are not selected here: copies of a token tie in the first layer, and which of them torch keeps is open.
    made = task_export("text-generation", target=request.param, keep_window_size=128)
    session = doge_export.load(made.folder, threads=1)
    assert (session.max_length, session.decoder.chunkable_length) == (MAX_LENGTH, TRAINED)
    return Fresh(made.model), AutoTokenizer.from_pretrained(made.checkpoint), session


class Fresh:
    """transformers' model, each time with a rotary module that has seen no longer sequence."""

    def __init__(self, model):
        self._model = model

    def __call__(self, ids):
        self._model.model.rotary_emb = type(self._model.model.rotary_emb)(self._model.config)
        return self._model(ids)


@pytest.mark.parametrize("window, stride", [(MAX_LENGTH, 30), (TRAINED, 24)])
def test_perplexity(both, window, stride):
    model, tokenizer, session = both
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    total, scored = 0.0, 1
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + window]
        with torch.no_grad():
            log_probs = model(part[None]).logits[0].double().log_softmax(-1)
        new = slice(scored - begin, len(part))
        total -= float(log_probs[new.start - 1 : -1].gather(-1, part[new, None]).sum())
        scored = begin + len(part)
        if scored == len(ids):
            break
    score = doge_export.evaluate_text(session, TEXT, window=window, stride=stride)
    assert score.tokens == len(ids) - 1
    assert score.nats_per_token == pytest.approx(total / score.tokens, rel=1e-4)
    assert score.perplexity == math.exp(score.nats_per_token)


def test_choices(both, reads):
    model, tokenizer, session = both
    items = [
        {
            "question": f"The {animal} ran home{tail}",
            "choices": ["and slept", "again", "with a very red ball"],
            "answer": 0,
        }
        for animal in ("fox", "cat")
        for tail in ("", " and played there, in the garden, with the ducks and the bread until it was dark" * 2, "")
    ]
    lengths = [len(tokenizer(item["question"]).input_ids) for item in items]
    assert max(lengths[::3]) + 12 < TRAINED < min(lengths[1::3])
    seen = reads(session)
    score = doge_export.evaluate_choices(session, items)
    for item, answer in zip(items, score.answers, strict=True):
        sums, greedy = lm_eval(model, tokenizer, item, MAX_LENGTH)
        assert answer.log_likelihoods == pytest.approx(sums, rel=1e-4, abs=1e-4)
        assert list(answer.is_greedy) == greedy
    read = [read for read, _ in seen]
    assert read[0] >= lengths[0] and max(read[1:3]) < 12
    assert min(read[3:6]) > TRAINED
    assert read[6] >= lengths[2]  # what was read beyond the trained length cannot be shared
