"""What every decoder keeps count of: which tokens its cache holds, and how many it may."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.prediction import Prediction, predictions

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a graph cannot tell of itself.

    `mixes_rows` is reference CDMoE routing, where the tokens that are read together route one another.
    """

    max_length: int
    chunkable_length: int
    mixes_rows: bool = False

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Limits:
        """As the export recorded them."""
        return cls(manifest["max_length"], manifest["chunkable_length"], manifest["cdmoe_routing"] == "reference")


class Progress:
    """Which tokens the cache holds: lengths, padding, and the positions that follow from them."""

    def __init__(self, max_length: int, vocab_size: int) -> None:
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.mask = np.zeros((0, max_length), dtype=np.int64)
        self.reset(1)

    def reset(self, batch_size: int) -> None:
        """An empty sequence of `batch_size` rows; `mask` stays the same array where they are as many as before."""
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
        """Raises DogeExportError unless the tokens fit behind the cached ones and are in the vocabulary."""
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

    def append(self, new: int, attention_mask: Array | None) -> tuple[Array, Array]:
        """Count `new` tokens in. Gives their mask and positions, int64 [B, new]; a position counts real tokens."""
        mask = self.mask[:, self.length : self.length + new]
        mask[...] = 1 if attention_mask is None else attention_mask
        if new == 1 and attention_mask is None:  # every step of decoding: nothing to count
            self.length += 1
            positions = self.tokens
            self.tokens = positions + 1
            return mask, positions
        counted = self.tokens + np.cumsum(mask, axis=1)
        self.length += new
        self.tokens = counted[:, -1:]
        return np.ascontiguousarray(mask), np.maximum(counted - 1, 0)


class CountingDecoder(abc.ABC):
    """The part of `runtime.decoder.Decoder` that is the same whatever runs the graph."""

    def __init__(self, limits: Limits, vocab_size: int) -> None:
        self.max_length, self.chunkable_length = limits.max_length, limits.chunkable_length
        self.vocab_size = vocab_size
        self._limits = limits
        self._progress = Progress(limits.max_length, vocab_size)

    @property
    def batch_size(self) -> int:
        """Rows now in the cache."""
        return self._progress.batch_size

    @property
    def length(self) -> int:
        """Tokens a row now has in the cache, padding included."""
        return self._progress.length

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)

    @abc.abstractmethod
    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`."""
        return predictions(self.forward(input_ids, attention_mask, 1))
