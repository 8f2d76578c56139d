"""Perplexity of a text by a sliding window, as Hugging Face's guide "Perplexity of fixed-length models" defines it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from doge_export.console import progress
from doge_export.errors import DogeExportError
from doge_export.evaluation.scorer import Scorer
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.long_text import encoded_stretches
from doge_export.runtime.prompts import need_tokenizer
from doge_export.runtime.session import Session
from doge_export.runtime.tokenizer import Tokenizer

LONGEST_WINDOW = 2048
"""Upper bound of the default window: the length in tokens that the published models were trained on."""

LONGEST_TEXT = 2**26
"""Most bytes of a text, or characters."""


@dataclasses.dataclass(frozen=True)
class TextScore:
    """The perplexity of a text.

    Attributes:
        perplexity: exponential of `nats_per_token`.
        nats_per_token: mean negative log-probability of a token.
        bits_per_byte: negative log-probability in bits per UTF-8 byte of the scored tokens.
        tokens: number of scored tokens, each of them scored once.
        bytes: number of UTF-8 bytes of the scored tokens.
        window: length of the window, in tokens.
        stride: step of the window, in tokens.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


def evaluate_text(session: Session, text: str, *, window: int | None = None, stride: int | None = None) -> TextScore:
    """Compute the perplexity of a text: the exponential of its tokens' mean negative log-probability.

    A window of `window` tokens moves over the text by `stride`. In each window the tokens that no earlier one has
    scored are scored, given all tokens before them in the window; these are at least window - stride tokens, except at
    the start of the text. The first token of a window has no token before it and is not scored.

    The code of the guide gives a window of T scored tokens the weight T - 1 where windows overlap; here every token has
    the same weight, as in the guide's formula.

    Args:
        session: session of a folder exported for text-generation, with a tokenizer.
        text: text to score, with the special tokens that the tokenizer adds to every text.
        window: 2 to session.max_length; by default session.max_length, but at most 2048.
        stride: 1 to window; by default half of it.

    Raises:
        DogeExportError: the text has less than two tokens or more than `LONGEST_TEXT` characters, or the window or
            stride is out of range.
    """
    window, stride = _extents(session, window, stride)
    ids, offsets = encoded_text(session, text)
    nats, scored = 0.0, 0
    unscored: list[int] = []
    with session.exclusive(), progress("scoring", len(ids) - 1) as advance:
        scorer = Scorer(session)
        for begin, first, end in windows(len(ids), window, stride):
            log_probs, _ = scorer.score(ids[begin:end].tolist(), first - 1 - begin, ids[first:end].tolist())
            nats -= float(log_probs.sum())
            unscored += range(scored, first)
            scored = end
            advance(end - first)
    unscored += range(scored, len(ids))
    tokens = len(ids) - len(unscored)
    size = len(text.encode()) - sum(len(text[slice(*offsets[index])].encode()) for index in unscored)
    return TextScore(
        perplexity=float(np.exp(nats / tokens)),
        nats_per_token=nats / tokens,
        bits_per_byte=nats / math.log(2) / max(size, 1),
        tokens=tokens,
        bytes=size,
        window=window,
        stride=stride,
    )


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, first scored token, end) of every window over `length` tokens that scores a token."""
    scored = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        first = max(scored, begin + 1)
        if first < end:
            yield begin, first, end
        scored = end
        if end == length:
            return


def _extents(session: Session, window: int | None, stride: int | None) -> tuple[int, int]:
    longest = session.max_length
    window = min(longest, LONGEST_WINDOW) if window is None else window
    if not is_integer(window) or not 2 <= window <= longest:
        raise DogeExportError(f"the window is {window!r}, expected 2 to {longest}, the tokens that this export holds")
    stride = window // 2 if stride is None else stride
    if not is_integer(stride) or not 1 <= stride <= window:
        raise DogeExportError(
            f"the stride is {stride!r}, expected 1 to {window}, the window: beyond it, tokens would be left out"
        )
    return window, stride


def encoded_text(session: Session, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Encode a text; return the ids [N], and each token's [start, end) in characters [N, 2], empty for added tokens."""
    tokenizer = need_tokenizer(session.tokenizer)
    if not text:
        raise DogeExportError("the text is empty: there is nothing to score")
    if len(text) > LONGEST_TEXT:
        raise DogeExportError(
            f"the text has {len(text)} characters, expected at most {LONGEST_TEXT}: give a part of it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DogeExportError(f"the text has a lone surrogate at character {error.start}: decode it anew") from error
    before, after = _added(tokenizer)
    parts = [*encoded_stretches(tokenizer, text)]
    ids = np.concatenate([before, *(ids for ids, _ in parts), after])
    if len(ids) < 2:
        raise DogeExportError(
            f"the text is too short: it has {len(ids)} token, and the first is never scored, since nothing is before it"
        )
    nowhere = np.zeros((1, 2), np.int64)
    around = nowhere.repeat(len(before), 0), nowhere.repeat(len(after), 0)
    return ids, np.concatenate([around[0], *(offsets for _, offsets in parts), around[1]])


def _added(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that the tokenizer puts before every text and behind it."""
    encoding = tokenizer.encoding("a", add_special_tokens=True)
    inside = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
    first, end = (inside[0], inside[-1] + 1) if inside else (0, len(encoding.ids))
    return np.array(encoding.ids[:first], np.int64), np.array(encoding.ids[end:], np.int64)
