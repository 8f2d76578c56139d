"""Choice of the next token from one row of logits, equal to that of transformers' logits processors.

Their order is kept: repetition penalty, temperature, top-k, top-p, min-p. Instead of masking the vocabulary and sorting
it, every filter narrows a list of candidates, by partial sorts where it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from doge_export.numerics import softmax
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.prediction import Candidates, Prediction


def penalise_repetition(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Copy `scores` [V], with the ids `seen` [n] less likely (penalty above 1) or more likely (penalty below 1)."""
    scores = scores.copy()
    chosen = scores[seen]
    scores[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def keep_top_k(candidates: Candidates, top_k: int) -> Candidates:
    """Keep the `top_k` best tokens, and all that equal the last of them."""
    ids, scores = candidates
    if top_k >= len(scores):
        return candidates
    kept = scores >= np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    return ids[kept], scores[kept]


def keep_top_p(candidates: Candidates, top_p: float) -> Candidates:
    """Keep the smallest set of best tokens whose probabilities add up to `top_p`, at least one.

    Of equal tokens, those with the lower ids come first.
    """
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
    """Keep the tokens that are at least `min_p` times as probable as the best one."""
    ids, scores = candidates
    kept = scores >= scores.max() + math.log(min_p)
    return ids[kept], scores[kept]


def filtered(prediction: Prediction, config: GenerationConfig) -> Candidates:
    """Return the tokens to draw from: temperature, then every filter that `config` asks for."""
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
    """Chooser of the tokens of one row; greedy choice takes the lowest id of equal scores, as torch does.

    Args:
        config: settings of the answer.
        prompt_token_ids: ids of the prompt, which the repetition penalty counts as seen.
        seed: of the random numbers of this row.
    """

    def __init__(self, config: GenerationConfig, prompt_token_ids: Sequence[int], seed: np.random.SeedSequence) -> None:
        self._config = config
        self._random = np.random.default_rng(seed) if config.do_sample else None
        self._seen = np.unique(np.asarray(prompt_token_ids, np.int64))
        self._seen_set = set(prompt_token_ids)
        self._is_argmax = not config.do_sample and config.repetition_penalty == 1

    def __call__(self, prediction: Prediction) -> int:
        """Choose the next token and return its id."""
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
