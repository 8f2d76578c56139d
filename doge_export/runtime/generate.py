"""The decoding loop: for every token one run of the decoder, and one choice for each row."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np

from doge_export.runtime.context import Context
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.logits_processors import Processor
from doge_export.runtime.prediction import Prediction
from doge_export.runtime.sampling import Sampler
from doge_export.runtime.streaming import StopStrings, open_detokenizer
from doge_export.runtime.tokenizer import Tokenizer
from doge_export.runtime.turns import Turns, this_thread

FinishReason = Literal["eos", "stop", "length"]


@dataclasses.dataclass(frozen=True)
class Generation:
    """An answer to a prompt.

    Attributes:
        text: the new text only, without special tokens, up to a stop string; empty if the folder has no tokenizer.
        token_ids: the new ids, including the eos token or the tokens of the stop string that ended them.
        prompt_token_ids: ids of the prompt.
        finish_reason: what ended the answer: "eos" (an eos token), "stop" (a stop string), "length" (max_new_tokens or
            the model's length); None for an answer that was interrupted.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: FinishReason | None

    def __str__(self) -> str:
        return self.text


class Row:
    """An answer in the making, one row of a batch.

    Args:
        prompt_token_ids: ids of the prompt.
        config: how tokens are chosen, and which ids end the answer.
        max_new_tokens: tokens after which the answer ends.
        seed: of the random numbers of this row.
        tokenizer: for the text; None to collect ids alone.
        stops: texts before which the answer ends.
        padding: number of padding ids that the batch puts before the prompt.
        last: processors that come after those of `config`.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        config: GenerationConfig,
        max_new_tokens: int,
        seed: np.random.SeedSequence,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        padding: int = 0,
        last: Sequence[Processor] = (),
    ) -> None:
        self.prompt_token_ids = list(prompt_token_ids)
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | None = None
        self._eos = frozenset(config.eos_token_ids)
        self._max_new_tokens = max_new_tokens
        self._choose = Sampler(
            config, prompt_token_ids, seed, max_new_tokens=max_new_tokens, padding=padding, last=last
        )
        self._detokenizer = None if tokenizer is None else open_detokenizer(tokenizer)
        self._stops = StopStrings(stops) if stops else None

    def advance(self, prediction: Prediction) -> str:
        """Choose the next token, and return the new text that is safe to show, often empty."""
        token = self._choose(prediction)
        self.token_ids.append(token)
        if token in self._eos:
            self.finish_reason = "eos"
        elif len(self.token_ids) == self._max_new_tokens:
            self.finish_reason = "length"
        if self._detokenizer is None:
            return ""
        piece = self._detokenizer.push(token)
        if self.finish_reason is not None:
            piece += self._detokenizer.flush()
        if self._stops is not None:
            piece = self._stops.push(piece)
            if self._stops.found:
                self.finish_reason = "stop"
            elif self.finish_reason is not None:
                piece += self._stops.flush()
        if piece:
            self.pieces.append(piece)
        return piece

    def generation(self) -> Generation:
        """The answer so far."""
        return Generation("".join(self.pieces), list(self.token_ids), self.prompt_token_ids, self.finish_reason)


def run(context: Context, rows: Sequence[Row], reuse: bool = False) -> Iterator[str]:
    """Decode until every row has ended, and yield the text of the first row as it becomes safe to show."""
    predictions, turn = context.read([row.prompt_token_ids for row in rows], reuse)
    # A row that has ended keeps reading its last id until all rows have ended; its predictions are ignored.
    tokens = np.zeros((len(rows), 1), np.int64)
    while True:
        for index, row in enumerate(rows):
            if row.finish_reason is None:
                piece = row.advance(predictions[index])
                tokens[index, 0] = row.token_ids[-1]
                if index == 0 and piece:
                    yield piece
        if all(row.finish_reason is not None for row in rows):
            return
        predictions = context.append(turn, tokens)


def _in_turn(turns: Turns, pieces: Iterator[str], owner: object, is_closed: Callable[[], bool]) -> Generator[str]:
    """Yield the pieces, holding the turn from the first one to the end; none if closed while it waits for the turn."""
    with turns.taken(owner, is_closed) as is_taken:
        for piece in pieces if is_taken else ():
            turns.rest()
            yield piece
            turns.moved()


class Stream(Iterator[str]):
    """An iterator over pieces of one answer's text, each given as soon as it is safe to show.

    From its first piece on it holds the session's turn, until it is exhausted, closed or garbage collected; as a
    context manager it closes at the end. Threads may share a stream: each piece goes to one of them.
    """

    def __init__(self, turns: Turns, context: Context, row: Row, reuse: bool = False) -> None:
        self._row = row
        self._turns = turns
        self._closed = threading.Event()
        self._pieces = _in_turn(turns, run(context, [row], reuse), this_thread(), self._closed.is_set)
        self._advancing = threading.Lock()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        with self._turns.held(self._advancing):
            if self._closed.is_set():
                raise StopIteration
            return next(self._pieces)

    def close(self) -> None:
        """End the answer where it is, so that the session is free for others; `generation` stays as it is.

        A thread that waits with this stream for its turn waits no longer: for it the stream ends.
        """
        self._closed.set()
        with self._advancing:
            self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def generation(self) -> Generation:
        """The answer so far; complete once `finish_reason` is not None."""
        return self._row.generation()
