"""The reference that an exported folder is compared with: a model in PyTorch, with eager attention in float32.

It is transformers for the generations that transformers has, else this project's own module (`module_oracle`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint


NOISY_RUNS = 2
"""Number of noisy runs in `Oracle.sensitivity`; a single one may by chance move a position very little."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceRun:
    """The result of the reference for a padded batch that is fed in pieces.

    Attributes:
        logits: float32 [B, S, V]; hidden states [B, S, H] of feature-extraction; the class scores of a row, repeated at
            each of its tokens [B, S, L], of text-classification.
        keys: float32 [B, Hkv, S, D] for each layer, NaN where nothing was computed; empty without a cache.
        values: as `keys`.
        gaps: [B, S], the smallest gap in a selection that the position depends on; see `ambiguity`.
        ranked: True where the largest element of the last axis is an answer.
        scale: standard deviation to measure differences in; None for that of `logits`.
    """

    logits: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]
    gaps: np.ndarray
    ranked: bool = True
    scale: float | None = None


class Oracle(abc.ABC):
    """A loaded reference model.

    Attributes:
        name: name of the reference within a sentence.
        selection_is_void: True if keys are selected by score and a head of some layer has A == 0. All its scores are
            then equal, so the selection among its keys is unspecified.
    """

    name: str

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.architecture = checkpoint.architecture
        tensors = checkpoint.tensors
        zero = (bool((tensors[name] == 0).any()) for name in tensors if name.endswith(".self_attn.A"))
        self.selection_is_void = self.architecture.keep_window_size > 0 and any(zero)
        self._noise: torch.Generator | None = None

    @abc.abstractmethod
    def describe(self) -> dict[str, str]:
        """Return "library", "version" and a "note" to the reader, which may be empty, of the reference."""

    @abc.abstractmethod
    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], *, noise: int | None = None
    ) -> ReferenceRun:
        """Run the reference on a batch.

        A language model is fed in pieces through its cache, with positions that count tokens but not padding. Another
        model takes the batch in one piece, with positions that count padding too.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, S], 1 for a token.
            chunks: sizes of the pieces.
            noise: seed of a relative error of one float32 rounding that is added to the embeddings; None for no error.
        """

    @abc.abstractmethod
    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """Return the `new_tokens` ids that greedy decoding appends to `prompt`; no token ends it early."""

    def sensitivity(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], reference: ReferenceRun
    ) -> np.ndarray:
        """Measure the largest change of a logit at each position, [B, S], caused by one rounding of the embeddings."""
        runs = (self.run(input_ids, attention_mask, chunks, noise=seed) for seed in range(NOISY_RUNS))
        return np.max([np.abs(run.logits - reference.logits).max(-1) for run in runs], axis=0)

    def _seed_noise(self, seed: int | None) -> None:
        import torch

        self._noise = None if seed is None else torch.Generator().manual_seed(seed)

    def _add_noise(self, module: Any, inputs: Any, embeddings: torch.Tensor) -> torch.Tensor | None:
        """Add the noise of the current run to the embeddings; a forward hook."""
        import torch

        if self._noise is None:
            return None
        return embeddings * (1 + 2**-23 * torch.randn(embeddings.shape, generator=self._noise))


def broadcast(answers: np.ndarray, tokens: int) -> np.ndarray:
    """Repeat the answers of rows [B, L] at each of their tokens, [B, S, L]."""
    return np.repeat(answers[:, None], tokens, axis=1)
