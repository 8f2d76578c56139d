"""Doge without a language model's head: hidden states, and classes. One call, no cache, tokens counted from 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doge_export.checkpoint.architecture import Architecture, CdmoeRouting
from doge_export.model.doge import DogeForExport, DogeForTask


class DogeForFeatures(DogeForTask):
    """transformers' DogeModel: the last hidden states."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both [B, S] int64, 0 in the mask for padding on either side; gives [B, S, H].

        Positions count from 0 whatever the mask says, as in transformers where none are given.
        """
        batch, tokens = input_ids.shape
        position_ids = torch.arange(tokens, device=input_ids.device).expand(batch, tokens)
        return self.model(input_ids, attention_mask, position_ids, self.empty_cache(batch))[0]


class DogeForClassification(DogeForFeatures):
    """transformers' DogeForSequenceClassification: the scores of one token's hidden state.

    That token is the last one whose id is not pad_token_id. Where the config has no pad_token_id transformers takes
    the last token of the only row; here it is the last one of the mask, which is the same.
    """

    def __init__(
        self, architecture: Architecture, cdmoe_routing: CdmoeRouting = "reference", max_length: int | None = None
    ) -> None:
        super().__init__(architecture, cdmoe_routing, max_length)
        self.score = nn.Linear(architecture.hidden_size, len(architecture.labels), bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As in `DogeForFeatures`; gives [B, labels]."""
        hidden = super().forward(input_ids, attention_mask)
        last = self._pooled(input_ids, attention_mask)[:, None, None].expand(-1, 1, hidden.shape[2])
        return self.score(hidden.gather(1, last).squeeze(1))

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The index of the token that stands for its row, [B]."""
        tokens = input_ids.shape[1]
        places = torch.arange(tokens, device=input_ids.device)
        pad = self.architecture.pad_token_id
        if pad is None:
            return (places * attention_mask).amax(-1)
        if self.architecture.first_pad_pooling:
            before = torch.where(input_ids == pad, places, tokens).amin(-1) - 1
            return torch.where(before < 0, tokens - 1, before)
        return (places * (input_ids != pad)).amax(-1)


MODULES: dict[str, type[DogeForTask]] = {
    "text-generation": DogeForExport,
    "feature-extraction": DogeForFeatures,
    "text-classification": DogeForClassification,
}
"""The module of each task."""
