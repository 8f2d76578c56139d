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
from doge_export.runtime.prompts import need_tokenizer
from doge_export.runtime.session import Session

LONGEST_WINDOW = 2048
"""Of the window that is chosen for the user: what the published models were trained on."""


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How well a text was foretold.

    tokens: how many were scored, each once. bytes: of UTF-8 that they stand for.
    """

    perplexity: float
    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def evaluate_text(session: Session, text: str, *, window: int | None = None, stride: int | None = None) -> TextScore:
    """Perplexity of `text`: the exponential of its tokens' mean negative log-probability.

    A window of `window` tokens moves over the text by `stride`. In each, the tokens that no window before it scored are
    scored behind everything before them in the window, at least window - stride tokens but for the start of the text.
    A window's first token has nothing before it and is not scored.

    The guide's own code lets a window of T scored tokens weigh T - 1 where windows overlap; here every token weighs
    the same, as its formula says.

    Args:
        session: of a folder exported for text-generation, with a tokenizer.
        text: what the tokenizer makes of it is scored, with the special tokens that it adds to every text.
        window: 2 to session.max_length; by default that, and at most 2048.
        stride: 1 to window; by default half of it.

    Raises DogeExportError for a text of less than two tokens, and for a window or stride out of range.
    """
    window, stride = _extents(session, window, stride)
    ids, offsets = _encoded(session, text)
    scorer = Scorer(session)
    nats, scored = 0.0, 0
    unscored: list[int] = []
    with progress("scoring", len(ids) - 1) as advance:
        for begin, first, end in windows(len(ids), window, stride):
            log_probs, _ = scorer.score(ids[begin:end], first - 1 - begin, ids[first:end])
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
    """(begin, first scored, end) of every window over `length` tokens that scores any."""
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


def _encoded(session: Session, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and where each token stands in the text: [start, end) in characters, empty for what was added."""
    tokenizer = need_tokenizer(session.tokenizer)
    if not text:
        raise DogeExportError("the text is empty: there is nothing to score")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DogeExportError(f"the text has a lone surrogate at character {error.start}: decode it anew") from error
    encoding = tokenizer.backend.encode(text)
    if len(encoding.ids) < 2:
        raise DogeExportError(
            f"the text is too short: it has {len(encoding.ids)} token, and the first is never scored, since nothing "
            "is before it"
        )
    return encoding.ids, encoding.offsets
