"""The two feed-forward layers: SwiGLU, and SwiGLU shared by a Cross Domain Mixture of Experts.

    mlp(x) = W_down (silu(W_gate x) * W_up x)
    cdmoe(x) = mlp(x) + sum_e softmax(scores)_e silu(<down_e, x>) up_e over the num_experts_per_tok best experts

transformers 5.23 `DogeMLP`, `DogeCDMoE`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doge_export.checkpoint.architecture import Architecture, CdmoeRouting, Moe
from doge_export.model import operators


class MLP(nn.Module):
    """SwiGLU; without the gate (the first generation) W_down silu(W_up x)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        hidden, intermediate = architecture.hidden_size, architecture.intermediate_size
        gated = architecture.gated_mlp
        self.gate_proj = nn.Linear(hidden, intermediate, architecture.mlp_bias) if gated else None
        self.up_proj = nn.Linear(hidden, intermediate, architecture.mlp_bias)
        self.down_proj = nn.Linear(intermediate, hidden, architecture.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        up = self.up_proj(x)
        return self.down_proj(F.silu(up) if self.gate_proj is None else F.silu(self.gate_proj(x)) * up)


class ExpertTable(nn.Module):
    """One row of `weight` [E, H] an expert; a module only to carry the checkpoint's name."""

    def __init__(self, num_experts: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size).normal_(std=0.02))


class Router(nn.Linear):
    """Scores of the two routing halves.

    A projection gives two halves for each routing head; they are the scores (M6, M7), or are matched with product keys
    (M0 to M5). `per_token` says how the projection [B, S, 2 * heads * width] is split: viewed as
    [B, S, 2, heads, width], causal and independent of the batch; or as [2, B * S, heads, width], as the reference does
    from M4 on: tokens and batch rows mix, unless B * S = 1.

    `ranks` (M5, M6) is a bug that these checkpoints were trained with: the two results of topk were unpacked crosswise
    (small-doge a6b62a1 to 515165e), so the first half's sorted scores take the first half's place, and the indices they
    were sorted by, as numbers, the second half's. The pair of ranks names the expert.
    """

    def __init__(self, hidden_size: int, moe: Moe, per_token: bool) -> None:
        width = moe.num_keys if moe.retrieval_size is None else moe.retrieval_size // 2
        super().__init__(hidden_size, 2 * moe.num_heads * width, bias=moe.router_bias)
        self.num_heads, self.width = moe.num_heads, width
        self.per_token = per_token
        self.ranks = moe.ranks_experts
        self.keys = None
        if moe.retrieval_size is not None:
            self.keys = nn.Parameter(torch.empty(2, moe.num_heads, width, moe.num_keys).normal_())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[B, S, H] -> scores of the first and of the second half, each [B, S, heads, K]."""
        batch, tokens, _ = x.shape
        projection = super().forward(x)
        if self.per_token:
            half_width = self.num_heads * self.width
            parts = projection[..., :half_width], projection[..., half_width:]
        else:
            parts = projection.reshape(2, -1)[:1], projection.reshape(2, -1)[1:]
        first, second = (half.reshape(batch, tokens, self.num_heads, self.width) for half in parts)
        if self.keys is not None:
            first, second = self._match(first, self.keys[0]), self._match(second, self.keys[1])
        if self.ranks:
            scores, indices = first.sort(dim=-1, descending=True)
            return scores, indices.to(scores.dtype)
        return first, second

    @staticmethod
    def _match(half: Tensor, keys: Tensor) -> Tensor:
        """[B, S, heads, R / 2] against keys [heads, R / 2, K] -> [B, S, heads, K]."""
        return (half[..., None, :] @ keys).squeeze(-2)


class CDMoE(MLP):
    """Cross Domain Mixture of Experts. `routing` "per-token" keeps tokens apart where the reference mixes them."""

    def __init__(self, architecture: Architecture, moe: Moe, routing: CdmoeRouting) -> None:
        super().__init__(architecture)
        hidden = architecture.hidden_size
        self.num_experts_per_tok, self.weights_inside = moe.num_experts_per_tok, moe.weights_inside
        self.router_gate = Router(hidden, moe, per_token=routing == "per-token" or not moe.mixes_tokens)
        self.down_embed = ExpertTable(moe.num_experts, hidden)
        self.up_embed = ExpertTable(moe.num_experts, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        tables = self.down_embed.weight, self.up_embed.weight
        routed = operators.cdmoe(x, *self.router_gate(x), *tables, self.num_experts_per_tok, self.weights_inside)
        return super().forward(x) + routed
