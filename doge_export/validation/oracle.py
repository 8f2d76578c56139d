"""What an exported folder is held against: a model in PyTorch, eager attention, float32.

transformers where it has the generation, else this project's own module, which has its own proof: `module_oracle`.
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
"""Runs that `Oracle.sensitivity` compares; one may by chance move a position little."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What the reference computes for one padded batch fed in pieces.

    logits float32 [B, S, V]; without a language model's head hidden states [B, S, H], or the classes' scores of a row
    at each of its tokens [B, S, L]. keys and values, one float32 [B, Hkv, S, D] a layer (NaN where nothing was
    computed, none without a cache). gaps [B, S]: the smallest gap in a selection that the position depends on, see
    `ambiguity`. ranked: whether the largest of the last axis is an answer. scale: the standard deviation to measure
    differences by; None for that of `logits`.
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
        name: of the reference in sentences.
        selection_is_void: whether keys are selected by score and some layer has A == 0 for a head: all its scores are
            equal, so nothing orders its keys.
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
        """Who judges: "library", "version", and a "note" on what a reader must know of it, which may be empty."""

    @abc.abstractmethod
    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], *, noise: int | None = None
    ) -> ReferenceRun:
        """Feed int64 [B, S] through a cache in pieces of `chunks` tokens, position ids from the mask's running sum.

        Models without a language model's head take all in one piece and count positions from 0.
        noise: a seed; embeddings then carry a relative error of one float32 rounding, as any computation might make.
        """

    @abc.abstractmethod
    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The new ids of greedy generation, never ending early."""

    def sensitivity(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], reference: ReferenceRun
    ) -> np.ndarray:
        """How far the logits of a run move for rounding alone at its input: largest |change| by position, [B, S]."""
        runs = (self.run(input_ids, attention_mask, chunks, noise=seed) for seed in range(NOISY_RUNS))
        return np.max([np.abs(run.logits - reference.logits).max(-1) for run in runs], axis=0)

    def _seed_noise(self, seed: int | None) -> None:
        import torch

        self._noise = None if seed is None else torch.Generator().manual_seed(seed)

    def _add_noise(self, module: Any, inputs: Any, embeddings: torch.Tensor) -> torch.Tensor | None:
        """A forward hook of the embedding."""
        import torch

        if self._noise is None:
            return None
        return embeddings * (1 + 2**-23 * torch.randn(embeddings.shape, generator=self._noise))


def broadcast(answers: np.ndarray, tokens: int) -> np.ndarray:
    """Answers of rows [B, L] at each of their tokens, [B, S, L]."""
    return np.repeat(answers[:, None], tokens, axis=1)
