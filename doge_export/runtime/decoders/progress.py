"""Bookkeeping of the tokens in a decoder's cache."""

from __future__ import annotations

import numpy as np

from doge_export.errors import DogeExportError

Array = np.ndarray


class Progress:
    """Record of the tokens in the cache: lengths, padding, and the positions that follow from them.

    Attributes:
        max_length: most tokens of a row.
        vocab_size: number of ids of the model.
        mask: int64 [B, max_length], 1 for a token and 0 for padding; only the first `length` columns count.
        batch_size: number of rows.
        length: tokens of a row, padding included.
        tokens: int64 [B, 1], tokens of each row without padding, which is the position of the next token.
    """

    def __init__(self, max_length: int, vocab_size: int) -> None:
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.mask = np.zeros((0, max_length), dtype=np.int64)
        self._is_open = True
        self.reset(1)

    def reset(self, batch_size: int) -> None:
        """Begin an empty sequence of `batch_size` rows; `mask` stays the same array for the same number of rows."""
        self.batch_size, self.length = batch_size, 0
        if len(self.mask) == batch_size:
            self.mask[...] = 0
        else:
            self.mask = np.zeros((batch_size, self.max_length), dtype=np.int64)
        self.tokens = np.zeros((batch_size, 1), dtype=np.int64)

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self.length = length
        self.tokens = self.mask[:, :length].sum(axis=1, keepdims=True)

    def check(self, input_ids: Array) -> None:
        """Refuse tokens that do not fit behind the cached ones or are not in the vocabulary.

        Raises:
            DogeExportError: there are too many tokens, an id is out of range, or the decoder was closed.
        """
        if not self._is_open:
            raise DogeExportError("this session was closed; load its folder again")
        batch, new = input_ids.shape
        if batch != self.batch_size:
            raise ValueError(f"{batch} rows given, the cache holds {self.batch_size}: reset first")
        if self.length + new > self.max_length:
            raise DogeExportError(
                f"{self.length + new} tokens are more than this export holds ({self.max_length}): "
                "shorten the prompt, or export again with a larger --max-length"
            )
        low, high = (int(input_ids[0, 0]),) * 2 if input_ids.size == 1 else (int(input_ids.min()), int(input_ids.max()))
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise DogeExportError(f"token id {wrong} is out of range: this model has ids 0 to {self.vocab_size - 1}")

    def close(self) -> None:
        """Refuse tokens from now on."""
        self._is_open = False

    def append(self, new: int, attention_mask: Array | None) -> tuple[Array, Array]:
        """Add tokens to the record.

        Args:
            new: number of new tokens of a row.
            attention_mask: int64 [B, new], 0 for padding; None without padding.

        Returns:
            The mask and the positions of the new tokens, int64 [B, new]; positions do not count padding.
        """
        mask = self.mask[:, self.length : self.length + new]
        mask[...] = 1 if attention_mask is None else attention_mask
        if new == 1 and attention_mask is None:  # a step of decoding, the most frequent case, needs no sum
            self.length += 1
            positions = self.tokens
            self.tokens = positions + 1
            return mask, positions
        counted = self.tokens + np.cumsum(mask, axis=1)
        self.length += new
        self.tokens = counted[:, -1:]
        return np.ascontiguousarray(mask), np.maximum(counted - 1, 0)


class Lengths(Progress):
    """Record of the lengths alone, for a cache that marks padding itself: nothing in it grows with the sequence."""

    def reset(self, batch_size: int) -> None:
        """Begin an empty sequence of `batch_size` rows."""
        self.batch_size, self.length = batch_size, 0
        self.tokens = np.zeros((batch_size, 1), dtype=np.int64)

    def after(self, new: int, attention_mask: Array | None) -> tuple[Array, Array, Array]:
        """Return what `append` returns, and `tokens` as it will be; the record stays as it is until `restore`."""
        shape = self.batch_size, new
        if new == 1 and attention_mask is None:  # a step of decoding, the most frequent case, needs no sum
            return np.ones(shape, np.int64), self.tokens, self.tokens + 1
        mask = np.ones(shape, np.int64) if attention_mask is None else np.asarray(attention_mask, np.int64)
        counted = self.tokens + np.cumsum(mask, axis=1)
        return mask, np.maximum(counted - 1, 0), counted[:, -1:].copy()

    def restore(self, length: int, tokens: Array) -> None:
        """Set the lengths to those of another time, without and with padding."""
        self.length, self.tokens = length, tokens
