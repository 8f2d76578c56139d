"""Log-probabilities of given tokens, read through a session's cache piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doge_export.errors import DogeExportError, RunFailed
from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.runtime.session import Session


class Scorer:
    """Scores sequence after sequence, one row at a time. An answer that the session was streaming cannot go on.

    A sequence goes through the cache in pieces, and what it shares with the one before is not read again, wherever
    pieces give the same logits (`Decoder.chunkable_length`); elsewhere it is read whole, by itself.
    """

    def __init__(self, session: Session) -> None:
        self._decoder = session.decoder
        session.reset()
        self._cached: list[int] = []

    def score(self, input_ids: Sequence[int], first: int, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """How likely the `targets` are, each behind its own token of `input_ids`, from index `first` on.

        Returns float64 [T] natural log-probabilities and bool [T], whether each is the likeliest token there.
        Raises DogeExportError for ids out of range and more tokens than the export holds, RunFailed where a logit is
        not finite.
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
            if in_pieces:  # what was read whole, beyond that length, is of no use to a shorter sequence
                self._cached += input_ids[start:stop]
            here = np.array(targets[wanted - first : max(stop - first, 0)], np.int64)
            scored, likeliest = _log_probs(logits[: len(here)], here)
            log_probs.append(scored)
            is_greedy.append(likeliest)
            start = stop
        return np.concatenate(log_probs), np.concatenate(is_greedy)

    def _keep(self, input_ids: Sequence[int]) -> int:
        """Keeps in the cache what it holds of the start of `input_ids`, and nothing else. Gives its length."""
        shared = 0
        for known, wanted in zip(self._cached, input_ids, strict=False):
            if known != wanted:
                break
            shared += 1
        if shared:
            self._decoder.rewind(shared)
        else:
            self._decoder.reset()
        self._cached = self._cached[:shared]
        return shared


def _log_probs(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [T] and bool [T] from logits float32 [T, V]."""
    if not np.isfinite(logits).all():
        raise RunFailed("the model gives logits that are not finite: nothing can be said of its quality but that")
    is_greedy = logits.argmax(axis=-1) == targets
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(targets)), targets].astype(np.float64)
    return chosen - np.log(np.exp(shifted, out=shifted).sum(axis=-1, dtype=np.float64)), is_greedy
