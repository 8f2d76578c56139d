"""The price of a window below keep_window_size: perplexity, divergence from the full window, speed and memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from doge_export.console import log, progress
from doge_export.errors import DogeExportError
from doge_export.evaluation.perplexity import encoded_text
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.quantization.stretches import bounds
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.loading import smaller_window, with_window
from doge_export.runtime.prediction import check_finite
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


def evaluate_windows(session: Session, text: str, windows: Sequence[int], *, length: int | None = None) -> WindowsScore:
    """Read a text with the full window and with smaller ones, side by side.

    The text is cut into rows of `length` tokens, each of which is read from its beginning, in pieces. All windows share
    the weights that the session has opened.

    Args:
        session: session of a folder exported for text-generation, with a tokenizer, and with the trained window.
        text: as `evaluate_text` takes it.
        windows: numbers of keys, each 1 to keep_window_size.
        length: tokens of a row, 2 to max_length; by default eight times keep_window_size, at most max_length. At most
            as many are read as give the same logits in pieces as at once, and a note says so.

    Raises:
        DogeExportError: as for `load` and `evaluate_text`; or a number is out of range, or the model reads no text in
            pieces.
        RunFailed: a logit is not finite.
    """
    if session.decoder.window is not None:
        raise DogeExportError(f"the session has a window of {session.decoder.window} keys: load its folder without one")
    sizes = sorted({int(window) if is_integer(window) else window for window in windows}, reverse=True)
    smaller = [with_window(session, size) for size in sizes if smaller_window(session.manifest, size) is not None]
    decoders = [session.decoder, *smaller]
    trained = int(session.manifest.architecture["keep_window_size"])
    length = _length(session, min(WINDOWS_READ * trained, session.max_length) if length is None else length)
    ids, _ = encoded_text(session, text)
    rows = [row for row in np.split(ids, range(length, len(ids), length)) if len(row) > 1]
    kls: list[list[np.ndarray]] = [[] for _ in decoders]
    losses: list[list[np.ndarray]] = [[] for _ in decoders]
    seconds: list[list[float]] = [[] for _ in decoders]
    sizes_in_bytes: list[int | None] = []
    with session.exclusive(), progress("reading", sum(map(len, rows))) as advance:
        for number, row in enumerate(rows):
            session.reset()
            for decoder in smaller:
                decoder.reset()
            parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in decoders]
            for piece in _pieces(len(row), steps=number == 0):
                expected = None
                for decoder, spent, part in zip(decoders, seconds, parts, strict=True):
                    start = time.perf_counter()
                    logits = decoder.forward(row[None, piece])[0]
                    if len(logits) == 1:
                        spent.append(time.perf_counter() - start)
                    check_finite(logits)
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
                sizes_in_bytes = [decoder.cache_bytes for decoder in decoders]
        session.reset()
    scores = (
        WindowScore(
            decoder.window or trained,
            decoder is session.decoder,
            _stretches(kls[place], losses[place]),
            1 / float(np.median(seconds[place])),
            sizes_in_bytes[place],
        )
        for place, decoder in enumerate(decoders)
    )
    return WindowsScore(tuple(scores), length, len(rows), session.decoder.computes_by)


def _length(session: Session, length: Any) -> int:
    """Return the tokens of a row, which are read in pieces: no more than may be."""
    if not is_integer(length) or not 2 <= length <= session.max_length:
        raise DogeExportError(
            f"the length is {length!r}, expected 2 to {session.max_length}, the tokens that this export holds"
        )
    in_pieces = session.decoder.chunkable_length
    if in_pieces < 2:
        mixes = session.manifest.cdmoe_routing == "reference"
        advice = ", or export again with --cdmoe-routing per-token" if mixes else ""
        raise DogeExportError(
            "windows are compared on texts read in pieces, and the tokens of this model depend on those read with "
            f"them: leave the window out{advice}"
        )
    if length > in_pieces:
        log(f"note: the length is {in_pieces} instead of {length}: longer texts must be read whole by this model")
    return int(min(length, in_pieces))


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
