"""Dynamic mask attention: every key carries a score that its value decides.

    q, k = RoPE(q_norm(W_q x)), RoPE(k_norm(W_k x));  v = W_v x
    score_j = exp(A * softplus(W_dt v_j))
    y_i = W_o softmax_j(<q_i, k_j> / sqrt(D) + score_j) v_j,   j <= i, j among the keep_window_size best scores

Trainable Dynamic Mask Sparse Attention, https://arxiv.org/abs/2508.02124; transformers 5.23 `DogeAttention`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doge_export.checkpoint.architecture import Architecture
from doge_export.model import operators
from doge_export.model.rope import rotate

LayerCache = tuple[Tensor, Tensor, Tensor]
"""key [B, Hkv, P, D], value [B, Hkv, P, D], score [B, Hs, P] float32 of the tokens seen so far."""


class DynamicMaskAttention(nn.Module):
    """One attention layer over a cache of keys, values and scores."""

    def __init__(self, architecture: Architecture, keep_window_size: int) -> None:
        super().__init__()
        hidden, size = architecture.hidden_size, architecture.head_dim
        self.num_heads = architecture.num_attention_heads
        self.kv_num_heads = architecture.num_key_value_heads
        self.head_dim = size
        self.keep_window_size = keep_window_size
        bias = architecture.attention_bias
        self.q_proj = nn.Linear(hidden, self.num_heads * size, bias)
        self.k_proj = nn.Linear(hidden, self.kv_num_heads * size, bias)
        self.v_proj = nn.Linear(hidden, self.kv_num_heads * size, bias)
        self.o_proj = nn.Linear(self.num_heads * size, hidden, bias)
        self.dt_proj = nn.Linear(self.kv_num_heads * size, self.kv_num_heads, bias)
        self.A = nn.Parameter(torch.zeros(self.kv_num_heads))
        self.q_norm = nn.RMSNorm(size, architecture.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, architecture.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, is_token: Tensor, cache: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        """x [B, S, H], cos, sin [B, S, D / 2], is_token [B, S] bool, cache of P tokens -> [B, S, H], cache of P + S."""
        query = self._normalise(self.q_proj(x), self.q_norm)
        key = self._normalise(self.k_proj(x), self.k_norm)
        value = self.v_proj(x)
        score = torch.exp(self.A * F.softplus(self.dt_proj(value))).float()
        # Padding is folded into the score once, here, so that attention needs no mask.
        score = torch.where(is_token[..., None], score, operators.NEG)
        output, *present = operators.dynamic_mask_attention(
            rotate(query, cos, sin, self.num_heads),
            rotate(key, cos, sin, self.kv_num_heads),
            value,
            score,
            *cache,
            num_heads=self.num_heads,
            kv_num_heads=self.kv_num_heads,
            scale=self.head_dim**-0.5,
            keep_window_size=self.keep_window_size,
        )
        return self.o_proj(output), (present[0], present[1], present[2])

    def _normalise(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        return norm(x.unflatten(-1, (-1, self.head_dim))).flatten(2)
