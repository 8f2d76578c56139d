"""A checkpoint in PyTorch, timed on the same prompts as a session."""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from doge_export.benchmark.timed_model import TimedModel
from doge_export.validation.references import in_transformers

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import CdmoeRouting


class Reference(TimedModel, Protocol):
    """A checkpoint in PyTorch; `description` names the implementation and versions."""

    description: str


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch compute by so many threads, and by as many as before afterwards; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_reference(checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting | None) -> Reference:
    """Load a checkpoint into transformers, or into this project's module if transformers lacks its generation."""
    if in_transformers(checkpoint.architecture):
        return TransformersReference(checkpoint)
    return ModuleReference(checkpoint, cdmoe_routing or "reference")


class _StepByStep(abc.ABC):
    """Greedy decoding through a cache, one call of `_next` for each token."""

    spins = False
    _cache: Any = None

    @abc.abstractmethod
    def _next(self, ids: torch.Tensor) -> torch.Tensor:
        """Append ids [B, S] to the cache and return the best next ids, [B, 1]."""

    def read(self, prompt: np.ndarray) -> float:
        """See `TimedModel`."""
        import torch

        start = time.perf_counter()
        self._cache = None
        self._token = self._next(torch.from_numpy(prompt))
        return time.perf_counter() - start

    def step(self, count: int) -> float:
        """See `TimedModel`; the overhead of transformers' `generate` is not included."""
        start = time.perf_counter()
        for _ in range(count):
            self._token = self._next(self._token)
        return time.perf_counter() - start


class TransformersReference(_StepByStep):
    """transformers in float32, with its default attention and its own `generate`."""

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        import transformers

        from doge_export.validation.transformers_oracle import load_transformers

        self.description = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self._torch = torch
        self._model = load_transformers(checkpoint)

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `TimedModel`."""
        ids = self._torch.from_numpy(prompt)
        start = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - start

    def _next(self, ids: torch.Tensor) -> torch.Tensor:
        from transformers import DynamicCache

        from doge_export.validation.transformers_oracle import cached_in

        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
        with self._torch.no_grad():
            output = self._model(ids, logits_to_keep=1, **cached_in(self._model, self._cache))
        chosen: torch.Tensor = output.logits[:, -1:].argmax(-1)
        return chosen


class ModuleReference(_StepByStep):
    """`doge_export.model.DogeForExport` in float32, which is not tuned for speed and computes all logits."""

    name = "doge-export's PyTorch module"

    def __init__(self, checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting) -> None:
        import torch

        from doge_export.model import DogeForExport

        architecture = checkpoint.architecture
        self.description = (
            f"doge-export's own PyTorch module, not tuned for speed (transformers has no {architecture.generation}), "
            f"torch {torch.__version__}"
        )
        self._torch = torch
        self._model = DogeForExport.from_tensors(architecture, checkpoint.tensors, cdmoe_routing)

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `TimedModel`."""
        return self.read(prompt) + self.step(new_tokens - 1)

    def _next(self, ids: torch.Tensor) -> torch.Tensor:
        past = 0 if self._cache is None else self._cache[0][0].shape[2]
        positions = self._torch.arange(past, past + ids.shape[1])[None]
        with self._torch.inference_mode():
            logits, self._cache = self._model(ids, self._torch.ones_like(ids), positions, self._cache)
        return logits[:, -1:].argmax(-1)
