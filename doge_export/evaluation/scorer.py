"""Log-probabilities of given tokens, computed in pieces through a session's cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doge_export.errors import DogeExportError, RunFailed
from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.runtime.session import Session
from doge_export.token_ids import common_prefix


class Scorer:
    """A scorer of one sequence after another, for the body of `Session.exclusive`.

    A sequence is read through the cache in pieces, and the prefix that it shares with the sequence before is not read
    again. Beyond `Decoder.chunkable_length`, where pieces would give other logits, a sequence is read in one piece.
    """

    def __init__(self, session: Session) -> None:
        self._decoder = session.decoder
        session.reset()
        self._cached: list[int] = []

    def score(self, input_ids: Sequence[int], first: int, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Score `targets`: target i is the token that follows `input_ids[first + i]`.

        Returns:
            float64 [T], the natural log-probability of each target; bool [T], True if it is the likeliest token.

        Raises:
            DogeExportError: an id is out of range, or the export does not hold so many tokens.
            RunFailed: a logit is not finite.
        """
        size = self._decoder.vocab_size
        if max(targets) >= size:
            raise DogeExportError(
                f"token id {max(targets)} is out of range: this model has ids 0 to {size - 1}; "
                "its tokenizer belongs to another model"
            )
        length = len(input_ids)
        in_pieces = length <= self._decoder.chunkable_length
        start = self._keep(input_ids[:first] if in_pieces else [])
        log_probs, is_greedy = [], []
        while start < first + len(targets):
            stop = min(start + PREFILL_CHUNK, length) if in_pieces else length
            wanted = max(start, first)
            piece = np.array([input_ids[start:stop]], np.int64)
            logits = self._decoder.forward(piece, None, max(stop - wanted, 1))[0]
            if in_pieces:  # a sequence read in one piece has a cache that shorter sequences cannot share
                self._cached += input_ids[start:stop]
            here = np.array(targets[wanted - first : max(stop - first, 0)], np.int64)
            scored, likeliest = _log_probs(logits[: len(here)], here)
            log_probs.append(scored)
            is_greedy.append(likeliest)
            start = stop
        return np.concatenate(log_probs), np.concatenate(is_greedy)

    def _keep(self, input_ids: Sequence[int]) -> int:
        """Cut the cache to the prefix that it shares with `input_ids`, as far as it can go back; return the length."""
        shared = self._decoder.recallable(common_prefix(self._cached, input_ids))
        if shared:
            self._decoder.rewind(shared)
        else:
            self._decoder.reset()
        self._cached = self._cached[:shared]
        return shared


def _log_probs(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute float64 [T] log-probabilities of the targets, and bool [T] whether they are best, from logits [T, V]."""
    if not np.isfinite(logits).all():
        raise RunFailed("the model gives logits that are not finite: nothing can be said of its quality but that")
    is_greedy = logits.argmax(axis=-1) == targets
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return chosen - np.log(np.exp(shifted, out=shifted).sum(axis=-1, dtype=np.float64)), is_greedy
