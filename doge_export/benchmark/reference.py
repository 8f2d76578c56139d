"""transformers, timed on the same questions as a session."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np


class Reference:
    """A checkpoint in transformers' generate, float32, its default attention."""

    def __init__(self, model: Path, threads: int | None) -> None:
        import torch
        import transformers

        if threads:
            torch.set_num_threads(threads)
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.threads = torch.get_num_threads()
        self._torch = torch
        self._model = transformers.DogeForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def decode(self, prompt: np.ndarray, new_tokens: int) -> float:
        """Tokens a second of a greedy generation, prompt included."""
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
        """Tokens a second of reading a prompt, with the logits of its last token only."""
        with self._torch.no_grad():
            start = time.perf_counter()
            self._model(self._torch.from_numpy(prompt), logits_to_keep=1, use_cache=True)
            return prompt.shape[1] / (time.perf_counter() - start)
