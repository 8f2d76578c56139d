"""Dynamic mask attention: every key carries a score that its value decides.

    q, k = RoPE(q_norm(W_q x)), RoPE(k_norm(W_k x));  v = W_v x
    score_j = exp(A * softplus(W_dt v_j))
    y_i = W_o softmax_j(<q_i, k_j> / sqrt(D) + score_j) v_j,   j <= i, j among the keep_window_size best scores

Generations differ in where values come from, in what the score does, and in which keys are left out by it.

Trainable Dynamic Mask Sparse Attention, https://arxiv.org/abs/2508.02124; transformers 5.23 `DogeAttention`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doge_export.checkpoint.architecture import Architecture, InnerValues
from doge_export.model import operators
from doge_export.model.rope import rotate

LayerCache = tuple[Tensor, Tensor, Tensor]
"""key [B, Hkv, P, D], value [B, Hkv, P, D], score [B, Hs, P] float32 of the tokens seen so far; with a ratio mask Hs
counts one more, which marks padding."""


class InnerFunction(nn.Module):
    """Values read from a table by several query heads, each adding up its best rows; then scaled by the input.

    v = x * sum over heads and picks of table[row];  rows: the best of (W_q x) @ keys. LoserCheems/Doge 89a5f2b,
    `DogeInnerFuncAttn`.
    """

    def __init__(self, hidden_size: int, inner: InnerValues, bias: bool) -> None:
        super().__init__()
        self.num_heads, self.num_values_per_head = inner.num_heads, inner.num_values_per_head
        self.queries = nn.Linear(hidden_size, inner.num_heads * inner.retrieval_size, bias)
        self.keys = nn.Parameter(torch.empty(inner.num_heads, inner.retrieval_size, inner.num_values).normal_())
        self.table = nn.Embedding(inner.num_values, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        queries = self.queries(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        rows = self.match(queries).topk(self.num_values_per_head, dim=-1).indices
        return x * self.table(rows).sum(dim=(1, 3))

    def match(self, queries: Tensor) -> Tensor:
        """Queries [B, heads, S, R] against the keys -> [B, heads, S, V]."""
        return queries @ self.keys


class DynamicMaskAttention(nn.Module):
    """One attention layer over a cache of keys, values and scores."""

    def __init__(self, architecture: Architecture, keep_window_size: int) -> None:
        super().__init__()
        hidden, size = architecture.hidden_size, architecture.head_dim
        self.num_heads = architecture.num_attention_heads
        self.kv_num_heads = architecture.num_key_value_heads
        self.head_dim = size
        self.keep_window_size = keep_window_size
        self.rotates_keys = architecture.rotates_keys
        self.score = architecture.score
        self.ratio_mask = architecture.ratio_mask
        bias, inner = architecture.attention_bias, architecture.inner_values
        self.q_proj = nn.Linear(hidden, self.num_heads * size, bias)
        self.k_proj = nn.Linear(hidden, self.kv_num_heads * size, bias)
        self.v_proj = InnerFunction(hidden, inner, bias) if inner else nn.Linear(hidden, self.kv_num_heads * size, bias)
        self.o_proj = nn.Linear(self.num_heads * size, hidden, bias)
        if self.score != "none":
            self.dt_proj = nn.Linear(self.kv_num_heads * size, architecture.score_heads, bias)
            self.A = nn.Parameter(torch.zeros(architecture.score_heads))
        norms = architecture.qk_norm
        self.q_norm = nn.RMSNorm(size, architecture.rms_norm_eps) if norms else None
        self.k_norm = nn.RMSNorm(size, architecture.rms_norm_eps) if norms else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, is_token: Tensor, cache: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        """x [B, S, H], cos, sin [B, S, D / 2], is_token [B, S] bool, cache of P tokens -> [B, S, H], cache of P + S."""
        query = rotate(self._normalise(self.q_proj(x), self.q_norm), cos, sin, self.num_heads)
        key = self._normalise(self.k_proj(x), self.k_norm)
        if self.rotates_keys:
            key = rotate(key, cos, sin, self.kv_num_heads)
        value = self.v_proj(x)
        heads = {"num_heads": self.num_heads, "kv_num_heads": self.kv_num_heads, "scale": self.head_dim**-0.5}
        padding = torch.where(is_token[..., None], 0.0, operators.NEG)
        past_key, past_value, past_score = cache
        if self.ratio_mask is not None:
            score = torch.cat([self._scores(value), padding], dim=-1)
            output, keys, values, scores = operators.ratio_mask_attention(
                *(query, key, value, score, past_key, past_value, past_score),
                **heads,
                **dataclasses.asdict(self.ratio_mask),
            )
        else:
            # Padding is folded into the score once, here, so that attention needs no mask.
            score = (
                padding
                if self.score == "none"
                else torch.where(is_token[..., None], self._scores(value), operators.NEG)
            )
            output, keys, values, scores = operators.dynamic_mask_attention(
                *(query, key, value, score, past_key, past_value, past_score),
                **heads,
                keep_window_size=self.keep_window_size,
            )
        return self.o_proj(output), (keys, values, scores)

    def _scores(self, value: Tensor) -> Tensor:
        """What a key's value [B, S, Hkv * D] adds to its logits, [B, S, Hs] float32."""
        step = self.A * F.softplus(self.dt_proj(value))
        if self.score == "linear":
            return step.float()
        if self.score == "exp":
            return torch.exp(step).float()
        return torch.where(torch.exp(step) < 1, operators.NEG, 0.0)

    def _normalise(self, x: Tensor, norm: nn.RMSNorm | None) -> Tensor:
        return x if norm is None else norm(x.unflatten(-1, (-1, self.head_dim))).flatten(2)
