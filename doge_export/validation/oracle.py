"""transformers' DogeForCausalLM, eager attention in float32: what every exported folder is held against.

Dynamic NTK, 2026-09: transformers' rotary module remembers the longest sequence it has seen and forgets it only when
a call stays strictly below max_position_embeddings, so its output depends on what ran before. The meaning of a
sequence is that of a fresh module fed the sequence's pieces in order; every run therefore starts with a pristine copy
of the rotary module. Nothing of transformers is patched.

Per-token routing, 2026-09: transformers mixes the router's logits of all tokens of a call, so a graph with per-token
routing differs from it in every call of more than one token. Where one token of one row is fed at a time both agree;
the reference is then computed so, with rotary frequencies frozen to those a fresh module takes for the whole piece.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.checkpoint.fields import read_object
from doge_export.errors import DogeExportError
from doge_export.validation.ambiguity import routing_gaps, selection_gaps, spread

if TYPE_CHECKING:
    import torch
    from transformers import DogeForCausalLM

OLDEST_TRANSFORMERS, OLDEST_WITH_EXPERTS = (5, 17), (5, 18)
"""Eager attention is right in 5.17; its mixture of experts fails to run."""

NOISY_RUNS = 2
"""Runs that `Oracle.sensitivity` compares; one may by chance move a position little."""


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What the reference computes for one padded batch fed in pieces.

    logits float32 [B, S, V]; keys and values, one float32 [B, Hkv, S, D] a layer (NaN where nothing was computed);
    gaps [B, S]: the smallest gap in a selection that the position depends on, see `ambiguity`.
    """

    logits: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]
    gaps: np.ndarray


class Oracle:
    """A loaded reference model. `per_token` tells that graphs with per-token CDMoE routing are to be judged."""

    def __init__(self, model: DogeForCausalLM, *, per_token: bool = False) -> None:
        from transformers import GenerationConfig

        self._model = model.eval()
        self._pristine_rotary = copy.deepcopy(model.model.rotary_emb)
        # Sampling settings and end tokens of the checkpoint would make generate's tokens depend on more than logits.
        model.generation_config = GenerationConfig()
        self._noise: torch.Generator | None = None
        self.config = model.config
        self.per_token = per_token and bool(model.config.is_moe)

    @property
    def selection_is_void(self) -> bool:
        """Whether some layer has A == 0 for a head: all its scores are equal, so nothing orders the keys."""
        return any(bool((layer.self_attn.A == 0).any()) for layer in self._model.model.layers)

    @property
    def trained_length(self) -> int:
        """The length up to which RoPE's frequencies are those of training."""
        rope: Any = self.config.rope_parameters
        if rope["rope_type"] == "longrope":
            return rope["original_max_position_embeddings"]
        return self.config.max_position_embeddings

    @property
    def multiplications_per_token(self) -> int:
        """Multiply-adds of one token outside attention: every linear layer once, and its routed experts."""
        import torch

        linear = sum(module.weight.numel() for module in self._model.modules() if isinstance(module, torch.nn.Linear))
        config = self.config
        routed = 2 * config.num_experts_per_tok * config.hidden_size * config.num_hidden_layers if config.is_moe else 0
        return linear + routed

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], *, noise: int | None = None
    ) -> ReferenceRun:
        """Feed int64 [B, S] through a cache in pieces of `chunks` tokens, position ids from the mask's running sum.

        noise: a seed; embeddings then carry a relative error of one float32 rounding, as any computation might make.
        """
        import torch

        with torch.inference_mode():
            self._reset_rotary()
            self._noise = None if noise is None else torch.Generator().manual_seed(noise)
            feed = self._feed_token_by_token if self.per_token else self._feed
            return feed(torch.from_numpy(input_ids), torch.from_numpy(attention_mask), tuple(chunks))

    def sensitivity(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], reference: ReferenceRun
    ) -> np.ndarray:
        """How far the logits of a run move for rounding alone at its input: largest |change| by position, [B, S]."""
        runs = (self.run(input_ids, attention_mask, chunks, noise=seed) for seed in range(NOISY_RUNS))
        return np.max([np.abs(run.logits - reference.logits).max(-1) for run in runs], axis=0)

    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The new ids of transformers' own greedy `generate`, never ending early."""
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            self._reset_rotary()
            ids = torch.tensor([list(prompt)])
            cache = DynamicCache(config=self.config)
            if self.per_token:
                for at in range(len(prompt) - 1):  # generate then feeds the last token alone
                    self._model(input_ids=ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return output[0, len(prompt) :].tolist()

    def _reset_rotary(self) -> None:
        self._model.model.rotary_emb = copy.deepcopy(self._pristine_rotary)

    def _feed(self, ids: torch.Tensor, mask: torch.Tensor, chunks: tuple[int, ...]) -> ReferenceRun:
        import torch
        from transformers import DynamicCache

        rows, length = ids.shape
        cache = DynamicCache(config=self.config)
        positions = _position_ids(mask)
        logits, gaps, start = [], np.full((rows, length), np.inf), 0
        for size in chunks:
            part = slice(start, start + size)
            hidden, routed = self._hidden(ids[:, part], mask[:, : start + size], positions[:, part], cache)
            logits.append(self._model.lm_head(hidden))
            if routed:
                gaps[:, part] = routing_gaps(routed, self.config.num_experts_per_tok).reshape(rows, size)
            start += size
        keys, values = _cached(cache)
        gaps = np.minimum(gaps, self._selection_gaps(values, mask, chunks))
        gaps = spread(gaps, chunks, mixes_tokens=bool(self.config.is_moe))
        return ReferenceRun(torch.cat(logits, 1).numpy(), keys, values, gaps)

    def _feed_token_by_token(self, ids: torch.Tensor, mask: torch.Tensor, chunks: tuple[int, ...]) -> ReferenceRun:
        import torch
        from transformers import DynamicCache

        rows, length = ids.shape
        caches = [DynamicCache(config=self.config) for _ in range(rows)]
        positions = _position_ids(mask)
        logits, gaps, start = torch.zeros(rows, length, self.config.vocab_size), np.full((rows, length), np.inf), 0
        for size in chunks:
            self._freeze_rotary(positions[:, start : start + size])
            for row, at in (mask[:, start : start + size] == 1).nonzero().tolist():
                here = slice(row, row + 1), slice(start + at, start + at + 1)
                seen = torch.ones(1, int(positions[here]) + 1, dtype=torch.int64)
                hidden, routed = self._hidden(ids[here], seen, positions[here], caches[row])
                logits[here] = self._model.lm_head(hidden)
                gaps[here] = routing_gaps(routed, self.config.num_experts_per_tok)
            start += size
        padded = [_cached(cache, length) for cache in caches]
        keys = [np.concatenate(layer) for layer in zip(*(keys for keys, _ in padded), strict=True)]
        values = [np.concatenate(layer) for layer in zip(*(values for _, values in padded), strict=True)]
        gaps = np.minimum(gaps, self._selection_gaps(values, mask, chunks))
        return ReferenceRun(logits.numpy(), keys, values, spread(gaps, chunks, mixes_tokens=False))

    def _hidden(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Last hidden states [B, S, H], and the router's logits [2, B * S, K] of each layer (none when dense)."""
        import torch

        routed = {"output_router_logits": True} if self.config.is_moe else {}
        embeddings = self._model.model.embed_tokens(ids)
        if self._noise is not None:
            embeddings = embeddings * (1 + 2**-23 * torch.randn(embeddings.shape, generator=self._noise))
        output = self._model.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **routed,
        )
        return output.last_hidden_state, tuple(output.router_logits) if routed else ()

    def _freeze_rotary(self, positions: torch.Tensor) -> None:
        """Install a rotary module with the frequencies a fresh one takes for a call with these positions [B, S]."""
        self._reset_rotary()
        rotary = self._model.model.rotary_emb
        rotary(self._model.lm_head.weight, positions)
        rotary.rope_type = "default"  # the type under which transformers leaves the frequencies alone

    def _selection_gaps(self, values: list[np.ndarray], mask: torch.Tensor, chunks: tuple[int, ...]) -> np.ndarray:
        """`selection_gaps` of each layer's cached values, [B, S]."""
        import torch

        scores = []
        for layer, value in zip(self._model.model.layers, values, strict=True):
            attention = layer.self_attn
            flat = torch.from_numpy(value).transpose(1, 2).flatten(2)
            score = torch.exp(attention.A * torch.nn.functional.softplus(attention.dt_proj(flat)))
            scores.append(score.transpose(1, 2).numpy())
        return selection_gaps(scores, mask.numpy(), self.config.keep_window_size, chunks)


def load_oracle(folder: Path, *, per_token: bool = False) -> Oracle:
    """Load a checkpoint folder with transformers, in float32 and from local files only.

    Raises DogeExportError where transformers is missing or too old, or does not take the checkpoint whole.
    """
    try:
        import torch
        from transformers import DogeForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise DogeExportError(
            f"validation compares with transformers, which cannot be imported here ({error}): "
            "pip install 'doge-export[export]'"
        ) from error
    version = importlib.metadata.version("transformers")
    with_experts = bool(read_object(folder / "config.json").get("is_moe"))
    needed = OLDEST_WITH_EXPERTS if with_experts else OLDEST_TRANSFORMERS
    if tuple(int(part) for part in version.split(".")[:2]) < needed:
        raise DogeExportError(
            f"transformers {version} is installed, but validating this checkpoint needs "
            f"{'.'.join(map(str, needed))} or later: pip install -U transformers"
        )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = DogeForCausalLM.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    model, loading = loaded
    unread = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if unread:
        raise DogeExportError(f"transformers does not take the checkpoint in {folder} whole: {unread}")
    return Oracle(model, per_token=per_token)


def _position_ids(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _cached(cache: Any, length: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Keys and values of every layer of a DynamicCache, left padded with NaN to `length` tokens where given."""
    pairs = [(layer.keys.numpy(), layer.values.numpy()) for layer in cache.layers]
    if length is not None:
        pads = [(0, 0), (0, 0), (length - pairs[0][0].shape[2], 0), (0, 0)]
        pairs = [tuple(np.pad(array, pads, constant_values=np.nan) for array in pair) for pair in pairs]  # type: ignore[misc]
    return [keys for keys, _ in pairs], [values for _, values in pairs]
