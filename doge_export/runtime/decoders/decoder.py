"""Base of all decoders: token ids in, logits out, with a cache between calls.

A decoder has neither a tokenizer nor a sampler. `runtime.loading.open_decoder` opens the one that a graph needs.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.runtime.decoders.progress import Progress
from doge_export.runtime.prediction import Prediction, predictions

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class SequenceLimits:
    """Limits of a sequence, recorded in the manifest because a graph does not show them.

    Attributes:
        max_length: most tokens of a row, prompt and answer together.
        chunkable_length: length up to which a prompt gives the same logits when it is read in pieces.
        mixes_rows: True if the experts of a token depend on all tokens of a run (reference CDMoE routing).
    """

    max_length: int
    chunkable_length: int
    mixes_rows: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the limits that an export recorded."""
        return cls(manifest.max_length, manifest.chunkable_length, manifest.cdmoe_routing == "reference")


def with_window(form: str, window: int | None) -> str:
    """Return the form of a state that also tells a smaller window, whose caches hold other keys."""
    return form if window is None else f"{form}, window {window}"


class Decoder(abc.ABC):
    """A graph with its cache, run over a growing sequence, one or several rows at a time.

    Attributes:
        max_length: most tokens of a row, prompt and answer together.
        chunkable_length: length up to which a prompt gives the same logits when it is read in pieces.
        vocab_size: ids run from 0 to vocab_size - 1.
        backend: what computes.
        window: number of keys that a token sees, where it is smaller than the model's keep_window_size; else None.
    """

    backend: ClassVar[str] = "graph"
    window: int | None = None
    _record_type: ClassVar[type[Progress]] = Progress

    def __init__(self, limits: SequenceLimits, vocab_size: int) -> None:
        self.max_length, self.chunkable_length = limits.max_length, limits.chunkable_length
        self.vocab_size = vocab_size
        self._limits = limits
        self._progress = self._record_type(limits.max_length, vocab_size)

    @property
    def computes_by(self) -> str:
        """What computes, in words."""
        return "onnxruntime"

    @property
    def max_batch(self) -> int | None:
        """Most rows of a run; None for any number."""
        return None

    @property
    def reads_together(self) -> bool:
        """True if `predict_together` reads the weights once for all decoders."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows now in the cache."""
        return self._progress.batch_size

    @property
    def length(self) -> int:
        """Tokens that a row now has in the cache, padding included."""
        return self._progress.length

    @abc.abstractmethod
    def fork(self) -> Self:
        """Return a decoder of the same graph with an empty cache of its own; both may run at the same time."""

    @abc.abstractmethod
    def reset(self, batch_size: int = 1) -> None:
        """Forget everything and make room for `batch_size` rows."""

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)

    def recallable(self, length: int) -> int:
        """Return the largest number of tokens, at most `length`, to which `rewind` can go back.

        A cache that drops no key can go back to any.
        """
        return length

    def mark(self) -> None:  # noqa: B027  a cache that drops no key has nothing to note
        """Note that a later `rewind` may want to come back to here."""

    @abc.abstractmethod
    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """Append tokens and return their logits.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, S] of these tokens alone, 0 for padding; None without padding.
            num_logits_to_keep: number of the last tokens whose logits are wanted; 0 for all.

        Returns:
            float32 [B, S or num_logits_to_keep, V]; later runs leave the array as it is.

        Raises:
            DogeExportError: the sequence outgrows max_length, or an id is out of range.
        """

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """Append tokens as `forward` does, and return the prediction of the next token of each row."""
        return predictions(self.forward(input_ids, attention_mask, 1))

    @classmethod
    def predict_together(cls, decoders: Sequence[Self], input_ids: Sequence[Array]) -> list[Prediction]:
        """Append tokens to several forks of one decoder, as `predict` does to each.

        Args:
            decoders: of one row each; their lengths, and their numbers of new tokens, may differ.
            input_ids: int64 [1, S] for each.

        Returns:
            The prediction of the next token of each decoder.

        Raises:
            DogeExportError: what `predict` of one of them raises. If they read together, no decoder has read anything
                then; else those before that one have.
        """
        return [decoder.predict(ids)[0] for decoder, ids in zip(decoders, input_ids, strict=True)]

    @property
    def cache_bytes(self) -> int | None:
        """Memory of the caches now; None where it is not known."""
        return None

    @abc.abstractmethod
    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copy the (key, value) cache of every layer, each [B, Hkv, length, D]."""

    @property
    def state_form(self) -> str | None:
        """Form of `state`, which a decoder of the same graph and form restores; None where there is none."""
        return None

    def state(self) -> dict[str, Array]:
        """Copy what the cache holds of its only row, by names that `restore` takes.

        Raises:
            DogeExportError: this decoder has no such copy.
        """
        raise DogeExportError(f"the state of a cache cannot be saved where {self.computes_by} computes")

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """Set the cache to a state of one row.

        Args:
            state: arrays of `state`.
            length: number of tokens that had been read.

        Raises:
            DogeExportError: the arrays are none of this graph's; the cache is then as it was.
        """
        raise DogeExportError(f"the state of a cache cannot be restored where {self.computes_by} computes")

    def close(self) -> None:
        """Refuse to run from now on; an engine frees its memory on the GPU."""
        self._progress.close()
