"""transformers' Doge with eager attention in float32: the reference for the generations that transformers has.

Dynamic NTK (2026-09): transformers' rotary module keeps the frequencies of the longest sequence it has seen until a
call stays strictly below max_position_embeddings, so its output depends on earlier calls. The expected output is that
of a fresh module fed the sequence's pieces in order; every run therefore starts with a fresh copy of the rotary module.
Nothing of transformers is patched.

Per-token routing (2026-09): transformers mixes the router's logits of all tokens of a call, so a graph with per-token
routing differs from it in every call of more than one token. Both agree on calls of one token of one row. For such a
graph the reference is fed token by token, with the rotary frequencies that a fresh module takes for the whole piece.
"""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.checkpoint.architecture import TRANSFORMERS_CLASSES
from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.validation.ambiguity import routing_gaps, selection_gaps, spread
from doge_export.validation.oracle import Oracle, ReferenceRun, broadcast

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import CdmoeRouting

OLDEST_TRANSFORMERS, OLDEST_WITH_EXPERTS = (5, 17), (5, 18)
"""Oldest usable versions: eager attention is right from 5.17 on, and the mixture of experts runs from 5.18 on."""

PER_TOKEN_NOTE = (
    "per-token CDMoE routing: transformers, which mixes the tokens of a call, was fed one token of one row at a time, "
    "where both routings agree"
)


def cached_in(model: Any, cache: Any) -> dict[str, Any]:
    """Return the arguments that make a call of transformers' model read and extend `cache`.

    transformers 5.24 renames `past_key_values` to `cache` and drops the old name in 5.40.
    """
    named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {named: cache, "use_cache": True}


class TransformersOracle(Oracle):
    """The reference in transformers, with the CDMoE routing of the exported graph."""

    name = "transformers"

    def __init__(self, checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting = "reference") -> None:
        from transformers import GenerationConfig

        super().__init__(checkpoint)
        self._model = load_transformers(checkpoint, attn_implementation="eager")
        self._base = getattr(self._model, "model", self._model)
        self._pristine_rotary = copy.deepcopy(self._base.rotary_emb)
        # With the checkpoint's sampling settings and end tokens, generate would depend on more than the logits.
        self._model.generation_config = GenerationConfig()
        self._base.embed_tokens.register_forward_hook(self._add_noise)
        self._routed: list[torch.Tensor] = []  # [2, B * S, K] of each layer of the last call
        moe = self.architecture.moe
        if moe is not None:
            for layer in self._base.layers:
                layer.mlp.router_gate.register_forward_hook(
                    lambda gate, inputs, output: self._routed.append(output.reshape(2, -1, moe.num_keys))
                )
        self.per_token = moe is not None and cdmoe_routing == "per-token"

    def describe(self) -> dict[str, str]:
        """See `Oracle`."""
        note = PER_TOKEN_NOTE if self.per_token else ""
        return {"library": "transformers", "version": importlib.metadata.version("transformers"), "note": note}

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], *, noise: int | None = None
    ) -> ReferenceRun:
        """See `Oracle`."""
        import torch

        with torch.inference_mode():
            self._reset_rotary()
            self._seed_noise(noise)
            ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
            if self.per_token:
                return self._feed_token_by_token(ids, mask, tuple(chunks))
            if self.architecture.task == "text-generation":
                return self._feed(ids, mask, tuple(chunks))
            return self._answer(ids, mask)

    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """See `Oracle`; the ids are those of transformers' own `generate`."""
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            self._reset_rotary()
            self._seed_noise(None)
            ids = torch.tensor([list(prompt)])
            cache = DynamicCache(config=self._model.config)
            if self.per_token:
                for at in range(len(prompt) - 1):  # generate then feeds the last token alone
                    self._model(input_ids=ids[:, at : at + 1], **cached_in(self._model, cache))
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                **cached_in(self._model, cache),
            )
        return output[0, len(prompt) :].tolist()

    def _reset_rotary(self) -> None:
        self._base.rotary_emb = copy.deepcopy(self._pristine_rotary)

    def _feed(self, ids: torch.Tensor, mask: torch.Tensor, chunks: tuple[int, ...]) -> ReferenceRun:
        import torch
        from transformers import DynamicCache

        rows, length = ids.shape
        cache = DynamicCache(config=self._model.config)
        positions = _position_ids(mask)
        logits, gaps, start = [], np.full((rows, length), np.inf), 0
        for size in chunks:
            part = slice(start, start + size)
            hidden = self._hidden(ids[:, part], mask[:, : start + size], positions[:, part], cache)
            logits.append(self._model.lm_head(hidden))
            gaps[:, part] = self._routing_gaps((rows, size))
            start += size
        keys, values = _cached(cache)
        gaps = np.minimum(gaps, self._selection_gaps(values, mask, chunks))
        gaps = spread(gaps, chunks, mixes_tokens=self.architecture.moe is not None)
        return ReferenceRun(torch.cat(logits, 1).numpy(), keys, values, gaps)

    def _answer(self, ids: torch.Tensor, mask: torch.Tensor) -> ReferenceRun:
        """Run a model without a language model's head in one ordinary call."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        self._routed.clear()
        output = self._model(input_ids=ids, attention_mask=mask, **cached_in(self._model, cache))
        chunks = (ids.shape[1],)
        gaps = np.minimum(self._routing_gaps(tuple(ids.shape)), self._selection_gaps(_cached(cache)[1], mask, chunks))
        gaps = spread(gaps, chunks, mixes_tokens=self.architecture.moe is not None)
        if self.architecture.task == "feature-extraction":
            return ReferenceRun(output.last_hidden_state.numpy(), [], [], gaps, ranked=False)
        return self._classes(output.logits, ids.shape[1], gaps)

    def _feed_token_by_token(self, ids: torch.Tensor, mask: torch.Tensor, chunks: tuple[int, ...]) -> ReferenceRun:
        import torch
        from transformers import DynamicCache

        rows, length = ids.shape
        caches = [DynamicCache(config=self._model.config) for _ in range(rows)]
        generates = self.architecture.task == "text-generation"
        positions = _position_ids(mask) if generates else torch.arange(length).expand(rows, length)
        hidden, gaps, start = (
            torch.zeros(rows, length, self.architecture.hidden_size),
            np.full((rows, length), np.inf),
            0,
        )
        for size in chunks:
            self._freeze_rotary(positions[:, start : start + size])
            for row, at in (mask[:, start : start + size] == 1).nonzero().tolist():
                here = slice(row, row + 1), slice(start + at, start + at + 1)
                seen = torch.ones(1, int(mask[row, : start + at + 1].sum()), dtype=torch.int64)
                hidden[here] = self._hidden(ids[here], seen, positions[here], caches[row])
                gaps[here] = self._routing_gaps((1, 1))
            start += size
        keys, values = _scattered([_cached(cache) for cache in caches], mask)
        gaps = np.minimum(gaps, self._selection_gaps(values, mask, chunks))
        gaps = spread(gaps, chunks, mixes_tokens=False)
        if generates:
            return ReferenceRun(self._model.lm_head(hidden).numpy(), keys, values, gaps)
        if self.architecture.task == "feature-extraction":
            return ReferenceRun(hidden.numpy(), [], [], gaps, ranked=False)
        return self._classes(self._model.score(hidden[torch.arange(rows), self._pooled(ids)]), length, gaps)

    def _pooled(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the index of each row's classified token [B], as `GenericForSequenceClassification` finds it."""
        import torch

        pad = self._model.config.pad_token_id
        if pad is None:
            return torch.full((ids.shape[0],), -1)
        return (torch.arange(ids.shape[1]) * (ids != pad)).argmax(-1)

    def _classes(self, logits: torch.Tensor, tokens: int, gaps: np.ndarray) -> ReferenceRun:
        return ReferenceRun(broadcast(logits.numpy(), tokens), [], [], gaps, ranked=logits.shape[1] > 1)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Compute the last hidden states [B, S, H] of tokens that follow a cache."""
        self._routed.clear()
        output = self._base(input_ids=ids, attention_mask=mask, position_ids=positions, **cached_in(self._base, cache))
        return output.last_hidden_state

    def _freeze_rotary(self, positions: torch.Tensor) -> None:
        """Install a rotary module with the frequencies a fresh one takes for a call with these positions [B, S]."""
        self._reset_rotary()
        rotary = self._base.rotary_emb
        rotary(self._base.norm.weight, positions)
        rotary.rope_type = "default"  # the type under which transformers leaves the frequencies alone

    def _routing_gaps(self, shape: tuple[int, ...]) -> np.ndarray:
        """Compute `routing_gaps` of the last call as an array of `shape`, [B, S]; inf for a dense model."""
        if self.architecture.moe is None:
            return np.full(shape, np.inf)
        return routing_gaps(self._routed, self.architecture.moe.num_experts_per_tok).reshape(shape)

    def _selection_gaps(self, values: list[np.ndarray], mask: torch.Tensor, chunks: Sequence[int]) -> np.ndarray:
        """Compute `selection_gaps` from each layer's cached values, [B, S]."""
        import torch

        scores = []
        for layer, value in zip(self._base.layers, values, strict=True):
            attention = layer.self_attn
            flat = torch.from_numpy(value).transpose(1, 2).flatten(2)
            score = torch.exp(attention.A * torch.nn.functional.softplus(attention.dt_proj(flat)))
            scores.append(score.transpose(1, 2).numpy())
        return selection_gaps(scores, mask.numpy(), self.architecture.keep_window_size, chunks)


def load_transformers(checkpoint: Checkpoint, **options: Any) -> Any:
    """Load a checkpoint into the transformers class of its task, in float32 and from local files only.

    Args:
        checkpoint: the checkpoint.
        options: further keyword arguments of `from_pretrained`.

    Raises:
        DogeExportError: transformers is missing, too old, or does not load every tensor.
    """
    try:
        import torch
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise DogeExportError(
            f"validation compares with transformers, which cannot be imported here ({error}): "
            f"{install_command('export')}"
        ) from error
    architecture, folder = checkpoint.architecture, checkpoint.source.folder
    version = importlib.metadata.version("transformers")
    needed = OLDEST_TRANSFORMERS if architecture.moe is None else OLDEST_WITH_EXPERTS
    if tuple(int(part) for part in version.split(".")[:2]) < needed:
        raise DogeExportError(
            f"transformers {version} is installed, but validating this checkpoint needs "
            f"{'.'.join(map(str, needed))} or later: pip install -U transformers"
        )
    # doge2 (G6b) is the same model; the checked pad_token_id replaces one outside the vocabulary, where transformers
    # fails.
    config = checkpoint.config | {"model_type": "doge", "pad_token_id": architecture.pad_token_id}
    if architecture.labels:
        config["id2label"] = dict(enumerate(architecture.labels))
        config["label2id"] = {label: index for index, label in enumerate(architecture.labels)}
    # transformers reads the files itself, unless they have a tensor name that it does not know, a head that the task
    # does not use and of which it would warn, or an adapter, which it would merge with peft or leave out.
    tensors = checkpoint.tensors
    named = checkpoint.as_stored and all(tensors.stored_name(name) == name for name in tensors)
    as_stored = named and architecture.task != "feature-extraction"
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, loading = getattr(transformers, TRANSFORMERS_CLASSES[architecture.task]).from_pretrained(
            folder if as_stored else None,
            state_dict=None if as_stored else dict(checkpoint.tensors),
            config=transformers.DogeConfig.from_dict(config),
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    unread = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if unread:
        raise DogeExportError(f"transformers does not take the checkpoint in {folder} whole: {unread}")
    return model.eval()


def _position_ids(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _cached(cache: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the keys and the values of every layer of a DynamicCache."""
    return [layer.keys.numpy() for layer in cache.layers], [layer.values.numpy() for layer in cache.layers]


def _scattered(
    rows: Sequence[tuple[list[np.ndarray], list[np.ndarray]]], mask: torch.Tensor
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Join the keys and values of rows that were cached apart: at the tokens of the mask [B, S], NaN elsewhere."""
    batch, length = mask.shape

    def scattered(which: int, layer: int) -> np.ndarray:
        first = rows[0][which][layer]
        whole = np.full((batch, first.shape[1], length, first.shape[3]), np.nan, first.dtype)
        for row, cached in enumerate(rows):
            whole[row][:, mask[row].numpy() == 1] = cached[which][layer][0]
        return whole

    layers = range(len(rows[0][0]))
    return [scattered(0, layer) for layer in layers], [scattered(1, layer) for layer in layers]
