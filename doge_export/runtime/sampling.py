"""Choice of the next token from one row of logits, equal to that of transformers' logits processors.

The processors of logits_processors.py come first. Sampling's own filters follow, in transformers' order: temperature,
top-h, top-k, top-p, min-p, typical-p, epsilon, eta. Instead of masking the vocabulary and sorting it, every filter
narrows a list of candidates, by partial sorts where it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.numerics import softmax
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.logits_processors import LARGEST, Processor, processors_for
from doge_export.runtime.prediction import Candidates, Prediction, check_finite


def divide_by_temperature(candidates: Candidates, temperature: float) -> Candidates:
    """Divide the scores; keep the best token alone where the quotients do not fit into float32."""
    ids, scores = candidates
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scaled = scores / np.float32(temperature)
    if np.isfinite(scaled.max()):
        return ids, scaled
    best = int(scores.argmax())
    return ids[best : best + 1], np.zeros(1, np.float32)


def keep_top_h(candidates: Candidates, top_h: float) -> Candidates:
    """Keep the best of the 100 likeliest tokens, as long as their terms of the entropy add up to `top_h` of it."""
    ids, scores = candidates
    best = np.argsort(-scores, kind="stable")[:100]
    log_probabilities = scores[best] - _log_sum(scores[best])
    probabilities = np.exp(log_probabilities)
    terms = -probabilities * np.where(probabilities > 0, log_probabilities, 0)
    kept = np.cumsum(terms) <= terms.sum() * np.float32(top_h)
    kept[0] = True
    chosen = np.sort(best[kept])
    return ids[chosen], scores[chosen]


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


def keep_typical(candidates: Candidates, mass: float) -> Candidates:
    """Keep the tokens whose surprise is nearest to the entropy, until their probabilities add up to `mass`."""
    ids, scores = candidates
    log_probabilities = scores - _log_sum(scores)
    probabilities = np.exp(log_probabilities)
    entropy = -(probabilities * np.where(probabilities > 0, log_probabilities, 0)).sum()
    distances = np.abs(-log_probabilities - entropy)
    order = np.argsort(distances, kind="stable")
    count = int((np.cumsum(softmax(scores[order])) < mass).sum())
    kept = distances <= distances[order[min(count, len(order) - 1)]]
    return ids[kept], scores[kept]


def keep_epsilon(candidates: Candidates, epsilon: float) -> Candidates:
    """Keep the tokens that have at least probability `epsilon`, and the best one."""
    ids, scores = candidates
    kept = (softmax(scores) >= epsilon) | (scores == scores.max())
    return ids[kept], scores[kept]


def keep_eta(candidates: Candidates, epsilon: float) -> Candidates:
    """Keep the tokens of at least probability `epsilon`, or less where the entropy is high, and the best one."""
    ids, scores = candidates
    probabilities = softmax(scores)
    log_probabilities = scores - _log_sum(scores)
    entropy = -(probabilities * np.where(probabilities > 0, log_probabilities, 0)).sum()
    eta = min(np.float32(epsilon), np.sqrt(np.float32(epsilon)) * np.exp(-entropy))
    kept = (probabilities >= eta) | (scores == scores.max())
    return ids[kept], scores[kept]


def _log_sum(scores: np.ndarray) -> np.float32:
    """Return log(sum(exp(scores))) of scores [n], one of which is finite."""
    largest = scores.max()
    return np.float32(largest + np.log(np.exp(scores - largest).sum()))


def filtered(prediction: Prediction, config: GenerationConfig) -> Candidates:
    """Return the tokens to draw from: temperature, then every filter that `config` asks for, in transformers' order.

    Raises:
        RunFailed: a logit is NaN or infinite.
    """
    candidates = prediction.candidates(config.top_k if config.top_h is None else 0)
    check_finite(float(candidates[1].max()))
    candidates = divide_by_temperature(candidates, config.temperature)
    if config.top_h is not None:
        candidates = keep_top_h(candidates, config.top_h)
    if config.top_k > 0:
        candidates = keep_top_k(candidates, config.top_k)
    if config.top_p < 1:
        candidates = keep_top_p(candidates, config.top_p)
    if config.min_p > 0:
        candidates = keep_min_p(candidates, config.min_p)
    if config.typical_p < 1:
        candidates = keep_typical(candidates, config.typical_p)
    if 0 < config.epsilon_cutoff < 1:
        candidates = keep_epsilon(candidates, config.epsilon_cutoff)
    if 0 < config.eta_cutoff < 1:
        candidates = keep_eta(candidates, config.eta_cutoff)
    return candidates


class Sampler:
    """Chooser of the tokens of one row; greedy choice takes the lowest id of equal scores, as torch does.

    An engine's decoder keeps its logits on the GPU and gives the best tokens alone: they suffice for greedy choice and
    for the filters of sampling. As soon as a setting needs a `Processor`, all logits are asked for.

    Args:
        config: settings of the answer.
        prompt_token_ids: ids of the prompt.
        seed: of the random numbers of this row.
        max_new_tokens: tokens after which the answer ends; None if that is not known.
        padding: number of padding ids that a batch puts before the prompt.
        last: processors that come after those of the settings.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_token_ids: Sequence[int],
        seed: np.random.SeedSequence,
        *,
        max_new_tokens: int | None = None,
        padding: int = 0,
        last: Sequence[Processor] = (),
    ) -> None:
        self._config = config
        self._random = np.random.default_rng(seed) if config.do_sample else None
        prompt = np.asarray(prompt_token_ids, np.int64)
        self._processors = processors_for(config, prompt, max_new_tokens, padding) + list(last)
        self._ids, self._length = prompt, len(prompt)  # a buffer that grows, and the ids in it

    def __call__(self, prediction: Prediction) -> int:
        """Choose the next token and return its id.

        Raises:
            RunFailed: a logit is NaN or infinite.
            DogeExportError: the settings forbid every token.
        """
        if not self._processors:
            return self._choose(prediction)
        token = self._choose(Prediction(self.processed(prediction.logits())))
        self.read([token])
        return token

    def read(self, token_ids: Sequence[int]) -> None:
        """Append ids to the answer so far, which the processors look at."""
        for token in token_ids:
            if self._length == len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._length + 16)
            self._ids[self._length] = token
            self._length += 1

    def processed(self, logits: np.ndarray) -> np.ndarray:
        """Return the scores that the settings make of logits [V], before sampling's own filters.

        Raises:
            RunFailed: a logit is NaN or infinite.
            DogeExportError: the settings forbid every token.
        """
        if not self._config.remove_invalid_values:
            check_finite(float(logits.max()))
        ids, scores = self._ids[: self._length], logits
        for process in self._processors:
            scores = process(ids, scores)
        best = scores.max()
        if best == -np.inf:
            raise DogeExportError(
                "the settings forbid every token at this place (bad_words_ids, suppress_tokens, no_repeat_ngram_size, "
                "min_new_tokens...): allow some"
            )
        return np.minimum(scores, LARGEST) if best > LARGEST else scores

    def _choose(self, prediction: Prediction) -> int:
        return prediction.argmax() if self._random is None else self._draw(prediction)

    def _draw(self, prediction: Prediction) -> int:
        assert self._random is not None
        ids, kept = filtered(prediction, self._config)
        cumulative = np.cumsum(softmax(kept), dtype=np.float64)
        index = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(index, len(ids) - 1)])
