"""Changes to the logits before a token is chosen, equal to transformers' logits processors.

A processor is a function of the ids so far (prompt and answer, int64 [n]) and the scores (float32 [V]) that returns
scores and leaves its arguments alone. `processors_for` puts those that a config asks for into the order in which
transformers' `generate` applies them. A row of a batch is processed as if it were alone, but for `min_length`,
`forced_bos_token_id` and `max_length`, which count its padding too, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from doge_export.runtime.generation_config import GenerationConfig

Ids = np.ndarray
Scores = np.ndarray
Processor = Callable[[Ids, Scores], Scores]

LARGEST = float(np.finfo(np.float32).max)


def bias_sequences(biases: Sequence[tuple[Sequence[int], float]]) -> Processor:
    """Add to the score of the last id of each sequence whose other ids have just come."""
    by_length: dict[int, list[tuple[Ids, int, np.float32]]] = {1: []}  # sums in transformers' order, to the last bit
    for ids, bias in biases:
        by_length.setdefault(len(ids), []).append((np.array(ids[:-1], np.int64), ids[-1], np.float32(bias)))

    def process(ids: Ids, scores: Scores) -> Scores:
        added = np.zeros_like(scores)
        for length, group in by_length.items():
            if length - 1 > len(ids):
                continue
            before = ids[len(ids) - length + 1 :]
            for prefix, last, bias in group:
                if np.array_equal(before, prefix):
                    added[last] += bias
        return scores + added

    return process


def penalise_repetition(scores: Scores, seen: Ids, penalty: float) -> Scores:
    """Copy `scores` [V], with the ids `seen` [n] less likely (penalty above 1) or more likely (penalty below 1)."""
    seen = seen[seen < len(scores)]
    scores = scores.copy()
    chosen = scores[seen]
    with np.errstate(over="ignore", invalid="ignore"):
        scores[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def forbid(forbidden: Sequence[int] | Ids, scores: Scores) -> Scores:
    """Copy `scores` [V] with minus infinity at the ids `forbidden`; ids that the model does not have are skipped."""
    ids = np.asarray(forbidden, np.int64)
    scores = scores.copy()
    scores[ids[ids < len(scores)]] = -np.inf
    return scores


def forbid_repeated_ngrams(size: int, text: Ids | None = None) -> Processor:
    """Forbid the ids that would make the last `size` ids a sequence that came before.

    Args:
        size: length of the sequences.
        text: ids in which the sequences are looked for; None for the ids so far.
    """

    def process(ids: Ids, scores: Scores) -> Scores:
        where = ids if text is None else text
        if len(where) < size or len(ids) < size - 1:
            return scores
        windows = np.lib.stride_tricks.sliding_window_view(where, size)
        matches = (windows[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
        return forbid(windows[matches, -1], scores)

    return process


def force(forced: Sequence[int], scores: Scores) -> Scores:
    """Return scores of 0 for the ids `forced` and minus infinity for all others."""
    only = np.full_like(scores, -np.inf)
    only[list(forced)] = 0
    return only


def remove_invalid(ids: Ids, scores: Scores) -> Scores:
    """Replace NaN by 0 and infinities by the largest float32 numbers."""
    return np.nan_to_num(scores, nan=0.0, posinf=LARGEST, neginf=-LARGEST)


def decay_length(start: int, factor: float, eos: Sequence[int]) -> Processor:
    """Raise the score of the eos tokens exponentially once there are more than `start` ids."""

    def process(ids: Ids, scores: Scores) -> Scores:
        if len(ids) <= start:
            return scores
        ends = np.array([token for token in eos if token < len(scores)], np.int64)
        chosen = scores[ends]
        with np.errstate(over="ignore", invalid="ignore"):
            raised = np.abs(chosen) * np.float32(_power(factor, len(ids) - start) - 1)
            scores = scores.copy()
            scores[ends] = np.where(np.isfinite(chosen), np.minimum(chosen + raised, LARGEST), chosen)
        return scores

    return process


def _power(base: float, exponent: int) -> float:
    try:
        return min(base**exponent, LARGEST)
    except OverflowError:
        return LARGEST


def processors_for(
    config: GenerationConfig, prompt: Ids, max_new_tokens: int | None = None, padding: int = 0
) -> list[Processor]:
    """List the processors that a config asks for, in transformers' order.

    Args:
        config: settings of the answer.
        prompt: ids of the prompt, int64 [n].
        max_new_tokens: tokens after which the answer ends; None if nothing is forced at its end.
        padding: number of padding ids that a batch puts before the prompt.
    """
    begin, eos = len(prompt), config.eos_token_ids
    found: list[Processor] = []

    def at_length(length: int, process: Callable[[Scores], Scores]) -> Processor:
        return lambda ids, scores: process(scores) if len(ids) == length else scores

    if config.sequence_bias:
        found.append(bias_sequences(config.sequence_bias))
    if config.encoder_repetition_penalty != 1:
        found.append(lambda ids, scores: penalise_repetition(scores, prompt, 1 / config.encoder_repetition_penalty))
    if config.repetition_penalty != 1:
        found.append(lambda ids, scores: penalise_repetition(scores, ids, config.repetition_penalty))
    if config.no_repeat_ngram_size:
        found.append(forbid_repeated_ngrams(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        found.append(forbid_repeated_ngrams(config.encoder_no_repeat_ngram_size, prompt))
    if config.bad_words_ids:
        bad = [sequence for sequence in config.bad_words_ids if sequence not in [(token,) for token in eos]]
        found.append(bias_sequences([(sequence, -np.inf) for sequence in dict.fromkeys(bad)]))
    shortest = begin + config.min_new_tokens if config.min_new_tokens else config.min_length - padding
    if eos and shortest > begin:
        found.append(lambda ids, scores: forbid(eos, scores) if len(ids) < shortest else scores)
    forced_bos = config.forced_bos_token_id
    if forced_bos is not None and padding == 0:
        found.append(at_length(1, lambda scores: force([forced_bos], scores)))
    if config.forced_eos_token_ids and max_new_tokens is not None:
        found.append(at_length(begin + max_new_tokens - 1, lambda scores: force(config.forced_eos_token_ids, scores)))
    if config.remove_invalid_values:
        found.append(remove_invalid)
    if config.exponential_decay_length_penalty is not None and eos:
        start, factor = config.exponential_decay_length_penalty
        found.append(decay_length(begin + start, factor, eos))
    if config.suppress_tokens:
        found.append(lambda ids, scores: forbid(config.suppress_tokens, scores))
    if config.begin_suppress_tokens:
        first = begin + 1 if begin + padding == 1 and forced_bos is not None else begin
        found.append(at_length(first, lambda scores: forbid(config.begin_suppress_tokens, scores)))
    return found
