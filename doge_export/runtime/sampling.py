"""How the next token is chosen from one row of logits, as transformers' logits processors do it and in their order.

repetition penalty, temperature, top-k, top-p, min-p. Instead of masking the vocabulary and sorting it, every filter
narrows a list of candidates, by partial sorts where it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from doge_export.numerics import softmax
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.prediction import Candidates, Prediction


def penalise_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """A copy of `scores` [V] in which the ids `seen` [n] are less likely (penalty > 1) or more (penalty < 1)."""
    scores = scores.copy()
    chosen = scores[seen]
    scores[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def keep_top_k(candidates: Candidates, top_k: int) -> Candidates:
    """The `top_k` best; more of them where the last ones are equal."""
    ids, scores = candidates
    if top_k >= len(scores):
        return candidates
    kept = scores >= np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    return ids[kept], scores[kept]


def keep_top_p(candidates: Candidates, top_p: float) -> Candidates:
    """The smallest set of best candidates whose probabilities add up to `top_p`, at least one; low ids where equal."""
    ids, scores = candidates
    probabilities = softmax(scores)
    # n tokens below (1 - p) / n add up to less than 1 - p: none of them is in the set, so none of them needs sorting.
    likely = probabilities >= (1 - top_p) / len(scores)
    ids, scores = ids[likely], scores[likely]
    better = np.cumsum(np.sort(probabilities[likely])[::-1], dtype=np.float64)
    count = min(len(scores), 1 + int(np.searchsorted(better, top_p, side="left")))
    last = np.partition(scores, -count)[-count]
    kept = scores > last
    kept[np.flatnonzero(scores == last)[: count - np.count_nonzero(kept)]] = True
    return ids[kept], scores[kept]


def keep_min_p(candidates: Candidates, min_p: float) -> Candidates:
    """Those at least `min_p` times as probable as the best one."""
    ids, scores = candidates
    kept = scores >= scores.max() + math.log(min_p)
    return ids[kept], scores[kept]


def filtered(prediction: Prediction, config: GenerationConfig) -> Candidates:
    """What may be sampled: temperature, then every filter that `config` asks for."""
    ids, logits = prediction.candidates(config.top_k)
    candidates = (ids, logits / np.float32(config.temperature))
    if config.top_k > 0:
        candidates = keep_top_k(candidates, config.top_k)
    if config.top_p < 1:
        candidates = keep_top_p(candidates, config.top_p)
    if config.min_p > 0:
        candidates = keep_min_p(candidates, config.min_p)
    return candidates


class Sampler:
    """Chooses the tokens of one row. Greedy is the lowest id among the highest scores, as in torch."""

    def __init__(self, config: GenerationConfig, prompt_token_ids: Sequence[int], seed: np.random.SeedSequence) -> None:
        self._config = config
        self._random = np.random.default_rng(seed) if config.do_sample else None
        self._seen = np.unique(np.asarray(prompt_token_ids, np.int64))
        self._seen_set = set(prompt_token_ids)
        self._is_argmax = not config.do_sample and config.repetition_penalty == 1

    def __call__(self, prediction: Prediction) -> int:
        """The next token id."""
        if self._is_argmax:
            return prediction.argmax()
        config = self._config
        if config.repetition_penalty != 1:
            penalised = penalise_repetition(prediction.logits(), self._seen, config.repetition_penalty)
            prediction = Prediction(penalised)
        token = prediction.argmax() if self._random is None else self._draw(prediction)
        if token not in self._seen_set:
            self._seen_set.add(token)
            self._seen = np.append(self._seen, token)
        return token

    def _draw(self, prediction: Prediction) -> int:
        assert self._random is not None
        ids, kept = filtered(prediction, self._config)
        cumulative = np.cumsum(softmax(kept), dtype=np.float64)
        index = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(index, len(ids) - 1)])
