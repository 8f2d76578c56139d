"""The price of a window below keep_window_size: perplexity, divergence from the full window, speed and memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.console import progress
from doge_export.errors import DogeExportError
from doge_export.evaluation.perplexity import encoded_text
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.quantization.stretches import bounds
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.loading import load_as
from doge_export.runtime.session import Session

PIECE = 256
"""Tokens of a run, whose logits are compared at once."""

STEPS = 64
"""Tokens at the end of the first row that are read one at a time, and timed."""

WINDOWS_READ = 8
"""Windows that a row is long by default."""


@dataclasses.dataclass(frozen=True)
class WindowStretch:
    """What a window gives at some positions.

    Attributes:
        first, end: position of the first token, and behind the last one.
        positions: number of tokens, of all rows.
        perplexity: of the tokens behind them; None where no token is.
        kl_mean, kl_p99: divergence from the full window, in nats: mean and 99th percentile.
    """

    first: int
    end: int
    positions: int
    perplexity: float | None
    kl_mean: float
    kl_p99: float


@dataclasses.dataclass(frozen=True)
class WindowScore:
    """A window, measured.

    Attributes:
        window: number of keys that a token sees.
        trained: it is the model's own.
        stretches: by position.
        tokens_per_second: of single tokens behind the first row, the median.
        cache_bytes: memory of its caches there; None where that is not known.
    """

    window: int
    trained: bool
    stretches: tuple[WindowStretch, ...]
    tokens_per_second: float
    cache_bytes: int | None


@dataclasses.dataclass(frozen=True)
class WindowsScore:
    """Windows over the same text, the trained one first.

    Attributes:
        windows: each of them.
        length: tokens of a row.
        rows: number of rows that the text was cut into.
        computed_by: what computed.
    """

    windows: tuple[WindowScore, ...]
    length: int
    rows: int
    computed_by: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)


def evaluate_windows(
    folder: str | Path, text: str, windows: Sequence[int], *, length: int | None = None, **opening: Any
) -> WindowsScore:
    """Read a text with the full window and with smaller ones, side by side.

    The text is cut into rows of `length` tokens, each of which is read from its beginning.

    Args:
        folder: a folder exported for text-generation, with a tokenizer.
        text: as `evaluate_text` takes it.
        windows: numbers of keys, each 1 to keep_window_size.
        length: tokens of a row, 2 to max_length; by default eight times keep_window_size, at most max_length.
        opening: further keyword arguments of `load`.

    Raises:
        DogeExportError: as for `load` and `evaluate_text`; or a number is out of range.
    """
    full = load_as(Session, folder, purpose="eval", **opening)
    sizes = sorted({int(window) if is_integer(window) else window for window in windows}, reverse=True)
    others = [load_as(Session, folder, purpose="eval", window=window, **opening) for window in sizes]
    sessions = [full, *(session for session in others if session.decoder.window is not None)]
    trained = int(full.manifest.architecture["keep_window_size"])
    length = min(WINDOWS_READ * trained, full.max_length) if length is None else length
    if not is_integer(length) or not 2 <= length <= full.max_length:
        raise DogeExportError(
            f"the length is {length!r}, expected 2 to {full.max_length}, the tokens that this export holds"
        )
    ids, _ = encoded_text(full, text)
    rows = [row for row in np.split(ids, range(length, len(ids), length)) if len(row) > 1]
    kls: list[list[np.ndarray]] = [[] for _ in sessions]
    losses: list[list[np.ndarray]] = [[] for _ in sessions]
    seconds: list[list[float]] = [[] for _ in sessions]
    sizes_in_bytes: list[int | None] = []
    with progress("reading", sum(map(len, rows))) as advance:
        for number, row in enumerate(rows):
            for session in sessions:
                session.reset()
            parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in sessions]
            for piece in _pieces(len(row), steps=number == 0):
                expected = None
                for session, spent, part in zip(sessions, seconds, parts, strict=True):
                    start = time.perf_counter()
                    logits = session.decoder.forward(row[None, piece])[0]
                    if len(logits) == 1:
                        spent.append(time.perf_counter() - start)
                    found = log_softmax(logits)
                    expected = found if expected is None else expected
                    following = row[piece.start + 1 : piece.stop + 1]
                    loss = -found[np.arange(len(following)), following]
                    part.append((kl_divergence(expected, found), loss))
                advance(piece.stop - piece.start)
            for place, part in enumerate(parts):
                kls[place].append(np.concatenate([kl for kl, _ in part]))
                losses[place].append(np.concatenate([loss for _, loss in part]))
            if number == 0:
                sizes_in_bytes = [session.decoder.cache_bytes for session in sessions]
    scores = (
        WindowScore(
            session.decoder.window or trained,
            session is full,
            _stretches(kls[place], losses[place]),
            1 / float(np.median(seconds[place])),
            sizes_in_bytes[place],
        )
        for place, session in enumerate(sessions)
    )
    return WindowsScore(tuple(scores), int(length), len(rows), full.decoder.computes_by)


def _pieces(length: int, *, steps: bool) -> Iterator[slice]:
    """Yield pieces of a row; with `steps`, its last tokens one at a time."""
    whole = length - min(STEPS, length // 2) if steps else length
    for start in range(0, whole, PIECE):
        yield slice(start, min(start + PIECE, whole))
    for start in range(whole, length):
        yield slice(start, start + 1)


def _stretches(kls: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> tuple[WindowStretch, ...]:
    found = []
    for first, end in bounds(max(map(len, kls))):
        kl = np.concatenate([row[first:end] for row in kls])
        loss = np.concatenate([row[first:end] for row in losses])
        perplexity = float(np.exp(loss.mean())) if len(loss) else None
        found.append(WindowStretch(first, end, len(kl), perplexity, float(kl.mean()), float(np.quantile(kl, 0.99))))
    return tuple(found)
