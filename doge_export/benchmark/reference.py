"""A checkpoint in PyTorch, timed on the same questions as a session."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from doge_export.validation.oracle import in_transformers

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import CdmoeRouting


class Reference(Protocol):
    """What a session is timed against. `name` stands in the table, `description` says versions."""

    name: str
    description: str

    def decode(self, prompt: np.ndarray, new_tokens: int) -> float:
        """Tokens a second of a greedy generation, prompt included."""

    def prefill(self, prompt: np.ndarray) -> float:
        """Tokens a second of reading a prompt, with the logits of its last token only where that can be asked."""


def load_reference(checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting | None, threads: int | None) -> Reference:
    """transformers, or for a generation that it does not have, this project's module."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if in_transformers(checkpoint.architecture):
        return TransformersReference(checkpoint)
    return ModuleReference(checkpoint, cdmoe_routing or "reference")


class TransformersReference:
    """transformers' generate, float32, its default attention."""

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        import transformers

        from doge_export.validation.transformers_oracle import load_transformers

        self.description = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self._torch = torch
        self._model = load_transformers(checkpoint)

    def decode(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `Reference`."""
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
        return new_tokens / (time.perf_counter() - start)

    def prefill(self, prompt: np.ndarray) -> float:
        """See `Reference`."""
        with self._torch.no_grad():
            start = time.perf_counter()
            self._model(self._torch.from_numpy(prompt), logits_to_keep=1, use_cache=True)
            return prompt.shape[1] / (time.perf_counter() - start)


class ModuleReference:
    """`doge_export.model.DogeForExport`, float32: written to be read, not to be fast."""

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

    def decode(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `Reference`."""
        with self._torch.inference_mode():
            start = time.perf_counter()
            ids, cache = self._torch.from_numpy(prompt), None
            for seen in range(prompt.shape[1], prompt.shape[1] + new_tokens):
                logits, cache = self._forward(ids, seen, cache)
                ids = logits[:, -1:].argmax(-1)
            return new_tokens / (time.perf_counter() - start)

    def prefill(self, prompt: np.ndarray) -> float:
        """See `Reference`; with the logits of every token."""
        with self._torch.inference_mode():
            start = time.perf_counter()
            self._forward(self._torch.from_numpy(prompt), prompt.shape[1], None)
            return prompt.shape[1] / (time.perf_counter() - start)

    def _forward(self, ids: torch.Tensor, seen: int, cache: Any) -> tuple[torch.Tensor, Any]:
        positions = self._torch.arange(seen - ids.shape[1], seen)[None]
        return self._model(ids, self._torch.ones_like(ids), positions, cache)
