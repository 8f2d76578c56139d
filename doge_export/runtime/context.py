"""Record of the tokens in a decoder's cache, so that the same tokens are not read twice."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.prediction import Prediction
from doge_export.token_ids import common_prefix

if TYPE_CHECKING:
    from doge_export.runtime.decoders.decoder import Decoder

PREFILL_CHUNK = 512
"""Prompt tokens per run. Bounds the memory of attention, which grows with chunk times length, at no cost in speed."""


class Context:
    """A decoder, and the ids that it has read.

    An id counts as read only after the run that reads it has returned. When something interrupts a run (Ctrl-C), the
    cache is right up to the recorded length, and the next `read` rewinds to there. The other order would leave ids on
    record whose keys were never written.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._ids = array("i")  # of the only row; empty for a batch, and for a prompt that must be read whole
        self._turn = 0

    def clear(self, batch_size: int = 1) -> None:
        """Empty the cache. An answer that is being generated cannot go on: its next `append` fails."""
        self._turn += 1
        self._ids = array("i")
        self.decoder.reset(batch_size)

    def read(self, rows: Sequence[Sequence[int]], reuse: bool = False) -> tuple[list[Prediction], int]:
        """Read prompts, padded on the left to the same length.

        Args:
            rows: token ids of each prompt.
            reuse: keep what the cache already holds of a single prompt and read only the rest, unless reading in pieces
                would change the answer (`Decoder.chunkable_length`).

        Returns:
            The prediction of the next token of each row, and the number to give to `append`.
        """
        length = max(map(len, rows))
        in_pieces = length <= self.decoder.chunkable_length
        kept = self._common(rows[0]) if reuse and len(rows) == 1 and in_pieces else 0
        kept = self.decoder.recallable(kept)
        if kept:
            self._turn += 1
            self._ids = self._ids[:kept]
            self.decoder.rewind(kept)
        else:
            self.clear(len(rows))
        input_ids = np.zeros((len(rows), length), np.int64)
        mask = np.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, length - len(row) :] = row
            mask[index, length - len(row) :] = 1
        is_padded = not mask.all()
        size = PREFILL_CHUNK if in_pieces else length
        for start in range(kept, length, size):
            chunk = slice(start, start + size)
            predictions = self.decoder.predict(input_ids[:, chunk], mask[:, chunk] if is_padded else None)
            if len(rows) == 1 and in_pieces:
                self._ids.extend(rows[0][chunk])
        if self._ids:
            self.decoder.mark()
        return predictions, self._turn

    def append(self, turn: int, tokens: np.ndarray) -> list[Prediction]:
        """Read one more token of every row.

        Args:
            turn: number that `read` returned with the prompts.
            tokens: int64 [B, 1].

        Returns:
            The prediction of the next token of each row.

        Raises:
            DogeExportError: another `read` or `clear` came in between.
        """
        if turn != self._turn:
            raise DogeExportError(
                "this answer was cut off by another one: a session generates one at a time, load a second session"
            )
        predictions = self.decoder.predict(tokens)
        if len(tokens) == 1 and self._ids:
            self._ids.append(int(tokens[0, 0]))
        return predictions

    @property
    def token_ids(self) -> Sequence[int]:
        """Ids in the cache; none where they are not on record: of a batch, of a prompt that had to be read whole."""
        return self._ids if self.decoder.length == len(self._ids) else ()

    def restore(self, token_ids: array[int], cache: Mapping[str, np.ndarray]) -> None:
        """Set the decoder to a state, see `Decoder.restore`, that had read these ids."""
        self._turn += 1
        self._ids = array("i")
        self.decoder.restore(cache, len(token_ids))
        self._ids = token_ids

    def _common(self, ids: Sequence[int]) -> int:
        """Count the first tokens of `ids` that are in the cache, but for the last id: it is read for its logits."""
        if self.decoder.batch_size != 1 or self.decoder.length < len(self._ids):
            return 0  # a caller used the decoder directly
        return common_prefix(self._ids, ids[:-1])
