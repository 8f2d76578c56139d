"""Doge, whole: embedding, decoder layers with weighted residuals, norm and head.

    x = input_residual * x + attention(norm(x));   x = post_attention_residual * x + mlp(norm(x))

Parameter names are those of a checkpoint in transformers' layout, so a state dict is the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from doge_export.checkpoint.architecture import Architecture, CdmoeRouting
from doge_export.model.attention import DynamicMaskAttention, LayerCache
from doge_export.model.feedforward import MLP, CDMoE
from doge_export.model.rope import RotaryEmbedding

UNBOUNDED = 2**31
"""A maximum length that leaves no mechanism out."""


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on a normalised input beside a weighted residual."""

    def __init__(self, architecture: Architecture, keep_window_size: int, cdmoe_routing: CdmoeRouting) -> None:
        super().__init__()
        hidden, eps = architecture.hidden_size, architecture.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps)
        self.self_attn = DynamicMaskAttention(architecture, keep_window_size)
        weighted = architecture.weighted_residuals
        self.input_residual = nn.Parameter(torch.ones(hidden)) if weighted else None
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
        self.mlp = CDMoE(architecture, architecture.moe, cdmoe_routing) if architecture.moe else MLP(architecture)
        self.post_attention_residual = nn.Parameter(torch.ones(hidden)) if weighted else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, is_token: Tensor, cache: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        """Shapes as in `DynamicMaskAttention.forward`."""
        attended, cache = self.self_attn(self.input_layernorm(x), cos, sin, is_token, cache)
        x = _weighted(x, self.input_residual) + attended
        return _weighted(x, self.post_attention_residual) + self.mlp(self.post_attention_layernorm(x)), cache


def _weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    """The residual branch; the first generation does not weight it."""
    return x if weight is None else weight * x


class DogeModel(nn.Module):
    """The decoder without its head."""

    def __init__(self, architecture: Architecture, max_length: int, cdmoe_routing: CdmoeRouting) -> None:
        super().__init__()
        window = architecture.keep_window_size if architecture.selects_keys(max_length) else 0
        self.embed_tokens = nn.Embedding(architecture.vocab_size, architecture.hidden_size)
        self.rotary_emb = RotaryEmbedding(architecture, max_length)
        self.layers = nn.ModuleList(
            DecoderLayer(architecture, window, cdmoe_routing) for _ in range(architecture.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(architecture.hidden_size, architecture.rms_norm_eps)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: list[LayerCache]
    ) -> tuple[Tensor, list[LayerCache]]:
        """Shapes as in `DogeForExport.forward`; gives hidden states [B, S, H]."""
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(position_ids)
        is_token = attention_mask.bool()
        present = []
        for layer, past in zip(self.layers, cache, strict=True):
            x, layer_cache = layer(x, cos, sin, is_token, past)
            present.append(layer_cache)
        return self.norm(x), present


class _Unfilled(TorchFunctionMode):
    """Makes parameters without memory and without the numbers that training starts from.

    Only these: on torch's device "meta" other tensors would be empty too, and it imports a compiler to compute them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is torch.empty:
            given = given | {"device": "meta"}
        elif func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


class DogeForTask(nn.Module):
    """The decoder below some head, written to be read and to be traced.

    Args:
        architecture: what the checkpoint is.
        cdmoe_routing: see `Router`.
        max_length: the longest sequence (cached and new) that will be asked for; by default anything, so that every
            mechanism is present. Key selection and RoPE scaling are left out where this length cannot reach them.
    """

    def __init__(
        self, architecture: Architecture, cdmoe_routing: CdmoeRouting = "reference", max_length: int | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.model = DogeModel(architecture, max_length or UNBOUNDED, cdmoe_routing)

    @classmethod
    def from_tensors(
        cls,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        cdmoe_routing: CdmoeRouting = "reference",
        max_length: int | None = None,
    ) -> Self:
        """A module whose parameters are the given tensors, without a second copy of any. Names must match exactly."""
        with _Unfilled():
            module = cls(architecture, cdmoe_routing, max_length)
        module.load_state_dict(dict(tensors), strict=True, assign=True)
        return module.eval()

    def empty_cache(self, batch_size: int) -> list[LayerCache]:
        """Return the cache before the first token."""
        arch, like = self.architecture, self.model.norm.weight
        entry = like.new_empty(batch_size, arch.num_key_value_heads, 0, arch.head_dim)
        score = like.new_empty(batch_size, arch.cached_scores, 0, dtype=torch.float32)
        return [(entry, entry, score)] * arch.num_hidden_layers


class DogeForExport(DogeForTask):
    """A Doge causal language model over a cache. Arguments as in `DogeForTask`."""

    def __init__(
        self, architecture: Architecture, cdmoe_routing: CdmoeRouting = "reference", max_length: int | None = None
    ) -> None:
        super().__init__(architecture, cdmoe_routing, max_length)
        self.lm_head = None
        if not architecture.tie_word_embeddings:
            self.lm_head = nn.Linear(architecture.hidden_size, architecture.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: list[LayerCache] | None = None,
    ) -> tuple[Tensor, list[LayerCache]]:
        """Logits of every new token.

        Args:
            input_ids: [B, S] int64.
            attention_mask: [B, S] int64, of the new tokens alone; 0 where a token is padding.
            position_ids: [B, S] int64.
            cache: a (key, value, score) of the P tokens before for each layer; None where there are none.

        Returns:
            logits [B, S, V] and the cache of P + S tokens.
        """
        cache = cache or self.empty_cache(input_ids.shape[0])
        hidden, cache = self.model(input_ids, attention_mask, position_ids, cache)
        head = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, head), cache
