"""Sessions over torch models: the truth, and the ways an export could be wrong.

They speak the part of `doge_export.runtime.Session` that validation uses, so the checks can be shown to pass on what is
right and to fail on each single mistake without any ONNX in between.
"""

from types import SimpleNamespace

import numpy as np
import torch
from manifests import minimal_manifest
from transformers import DogeForCausalLM, DynamicCache

from doge_export.checkpoint import open_checkpoint
from doge_export.model import DogeForExport
from doge_export.package import Fingerprint
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.validation.transformers_oracle import cached_in


class TorchSession:
    """transformers' own model as the subject. Each argument spoils one thing.

    spoil(model) changes the model. causal, padding: False ignores them.
    restart_positions: every piece counts its positions from 0. stale_rotary: keep what earlier runs left behind.
    answer: changes the ids `generate` gives.
    """

    def __init__(
        self,
        checkpoint,
        *,
        max_length,
        spoil=lambda model: None,
        causal=True,
        padding=True,
        restart_positions=False,
        stale_rotary=False,
        answer=lambda ids: ids,
    ):
        self.model = DogeForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            spoil(self.model)
        self.manifest = minimal_manifest(
            str(checkpoint),
            target="torch",
            cdmoe_routing="reference" if self.model.config.is_moe else None,
            files={"onnx/model.onnx": Fingerprint("0" * 64, 1)},
        )
        self.max_length = max_length
        self.causal, self.padding, self.restart_positions = causal, padding, restart_positions
        self.stale_rotary, self.answer = stale_rotary, answer
        self.cache = None
        self.decoder = SimpleNamespace(cache_snapshot=self._snapshot)

    @torch.inference_mode()
    def logits(self, input_ids, attention_mask=None, chunks=None):
        ids = torch.as_tensor(np.asarray(input_ids))
        mask = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(np.asarray(attention_mask))
        self._reset()
        pieces, start = [], 0
        for size in chunks or [ids.shape[1]]:
            pieces.append(self._forward(ids[:, start : start + size], mask[:, : start + size]))
            start += size
        return torch.cat(pieces, 1).float().numpy()

    @torch.inference_mode()
    def generate(self, prompt, *, max_new_tokens, defaults):
        assert defaults == GenerationConfig()  # greedy, with no eos token
        self._reset()
        ids, answer = torch.tensor([prompt]), []
        while len(answer) < max_new_tokens:
            total = torch.ones(1, len(prompt) + len(answer), dtype=torch.int64)
            answer.append(int(self._forward(ids, total)[0, -1].argmax()))
            ids = torch.tensor([answer[-1:]])
        return SimpleNamespace(token_ids=self.answer(answer))

    def _reset(self):
        self.cache = DynamicCache(config=self.model.config)
        if not self.stale_rotary:
            self.model.model.rotary_emb = type(self.model.model.rotary_emb)(self.model.config)

    def _forward(self, ids, mask):
        size = ids.shape[1]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -size:]
        if self.restart_positions:
            positions = positions - positions[:, :1]
        if not self.padding:
            mask = torch.ones_like(mask)
        if not self.causal:
            mask = torch.where(mask == 1, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
            mask = mask[:, None, None, :].expand(-1, 1, size, -1)
        output = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, **cached_in(self.model, self.cache)
        )
        return output.logits

    def _snapshot(self):
        return [(layer.keys.float().numpy(), layer.values.float().numpy()) for layer in self.cache.layers]


class ModelSession(TorchSession):
    """The project's own module as the subject: right, and computed differently from transformers."""

    def __init__(self, checkpoint, *, max_length, cdmoe_routing="reference"):
        opened = open_checkpoint(checkpoint)
        architecture = opened.architecture
        self.model = DogeForExport.from_tensors(architecture, opened.tensors, cdmoe_routing, max_length)
        self.manifest = minimal_manifest(str(checkpoint), cdmoe_routing=cdmoe_routing if architecture.moe else None)
        self.max_length, self.answer, self.cache = max_length, list, None
        self.decoder = SimpleNamespace(cache_snapshot=self._snapshot)

    def _reset(self):
        self.cache = None

    def _forward(self, ids, mask):
        size = ids.shape[1]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -size:]
        logits, self.cache = self.model(ids, mask[:, -size:], positions, self.cache)
        return logits

    def _snapshot(self):
        return [(key.numpy(), value.numpy()) for key, value, _ in self.cache]
