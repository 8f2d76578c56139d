"""Tiny random Doge checkpoints, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
}


def save_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "1GB", **options: Any) -> Path:
    """Random weights in every tensor, none of them at its initial constant, saved by transformers."""
    from transformers import DogeConfig, DogeForCausalLM

    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**SIZES | options))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder
