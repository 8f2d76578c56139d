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
    """SwiGLU."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        hidden, intermediate = architecture.hidden_size, architecture.intermediate_size
        self.gate_proj = nn.Linear(hidden, intermediate, architecture.mlp_bias)
        self.up_proj = nn.Linear(hidden, intermediate, architecture.mlp_bias)
        self.down_proj = nn.Linear(intermediate, hidden, architecture.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ExpertTable(nn.Module):
    """One row of `weight` [E, H] an expert; a module only to carry the checkpoint's name."""

    def __init__(self, num_experts: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size).normal_(std=0.02))


class CDMoE(MLP):
    """Cross Domain Mixture of Experts.

    `routing` says how the router's projection [B, S, 2K] becomes two halves of K scores. "reference" views it as
    [2, B * S, K], as transformers does: tokens and batch rows mix, unless B * S = 1. "per-token" views it as
    [B, S, 2, K]: causal, and independent of the batch.
    """

    def __init__(self, architecture: Architecture, moe: Moe, routing: CdmoeRouting) -> None:
        super().__init__(architecture)
        self.num_keys = moe.num_keys
        self.num_experts_per_tok = moe.num_experts_per_tok
        self.routing = routing
        self.router_gate = nn.Linear(architecture.hidden_size, 2 * moe.num_keys, bias=False)
        self.down_embed = ExpertTable(moe.num_experts, architecture.hidden_size)
        self.up_embed = ExpertTable(moe.num_experts, architecture.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        routed = operators.cdmoe(
            x, *self._halves(x), self.down_embed.weight, self.up_embed.weight, self.num_experts_per_tok
        )
        return super().forward(x) + routed

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the two halves, each [B, S, 1, K]."""
        batch, tokens, _ = x.shape
        projection = self.router_gate(x)
        if self.routing == "per-token":
            scores_x, scores_y = projection.unflatten(-1, (2, self.num_keys)).split(1, dim=2)
        else:
            halves = projection.reshape(2, batch, tokens, 1, self.num_keys)
            scores_x, scores_y = halves.unbind(0)
        return scores_x, scores_y
