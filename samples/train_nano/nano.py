"""The two models: their sizes, their initial weights, saving and loading.

The dense model is transformers' own class. The CDMoE model is doge-export's, with per-token routing: in transformers a
token's routing depends on later tokens, which training would exploit but decoding cannot see.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DogeConfig, DogeForCausalLM

from doge_export.checkpoint.config import parse_todays_config
from doge_export.model import DogeForExport

NAMES = {"dense": "doge-nano", "moe": "doge-nano-moe"}
Forward = Callable[[Tensor], Tensor]
"""Token ids [B, S] int64 -> logits [B, S, V] float32, no padding."""


def config(kind: str, **changes: Any) -> DogeConfig:
    """Return the configuration of the "dense" or the "moe" model, with `changes` such as smaller sizes."""
    sizes: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 256 if kind == "dense" else 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        # Less than a training row: selecting keys is part of what the model learns.
        "keep_window_size": 64,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "dtype": "float16",
        "architectures": ["DogeForCausalLM"],
    }
    if kind == "moe":
        sizes |= {"is_moe": True, "num_experts": 196, "num_experts_per_tok": 8}
    return DogeConfig(**(sizes | changes))


def build(config: DogeConfig, seed: int) -> nn.Module:
    """Build a model with initial float32 weights.

    Matrices preserve the variance of their input; those that write to the residual stream add 1 / (2 L) of it.
    A, the strength of the dynamic mask, starts with a random sign and a magnitude between 0.5 and 1.5: with
    transformers' zero every score is 1, so all keys would tie in the selection.

    2026-11-21: the first layer's q_norm is zero and stays zero. In that layer a value, and so the score, depends on the
    token alone: equal tokens tie, torch.topk keeps an unspecified choice of them, and with RoPE the choice matters.
    Without a query equal tokens are interchangeable, so greedy text can be compared token by token past
    keep_window_size. In return, these models do not test ties, which do matter in other checkpoints.
    """
    if config.is_moe:
        model: nn.Module = DogeForExport(parse_todays_config(config.to_dict()), cdmoe_routing="per-token")
    else:
        model = DogeForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".A"):
                sign = torch.randint(2, weight.shape, generator=generator) * 2 - 1
                weight.copy_(sign * (0.5 + torch.rand(weight.shape, generator=generator)))
            elif weight.dim() == 1:
                weight.fill_(1.0)
            elif "embed_tokens" in name:
                weight.normal_(std=0.05, generator=generator)
            else:
                written = name.split(".")[-2] in ("o_proj", "down_proj", "up_embed")
                std = config.hidden_size**-0.5 / (math.sqrt(2 * config.num_hidden_layers) if written else 1)
                weight.normal_(std=std, generator=generator)
    first = dict(model.named_parameters())["model.layers.0.self_attn.q_norm.weight"]
    first.detach().zero_()
    first.requires_grad_(False)
    return model


def forward_of(model: nn.Module) -> Forward:
    """Return a function from token ids to logits, the same for both classes."""

    def forward(input_ids: Tensor) -> Tensor:
        if isinstance(model, DogeForCausalLM):
            return model(input_ids=input_ids, use_cache=False).logits
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return model(input_ids, torch.ones_like(input_ids), positions)[0]

    return forward


def save(model: nn.Module, config: DogeConfig, folder: Path) -> None:
    """Write float16 weights, config.json and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().half().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_new_tokens": 100, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load(folder: Path) -> nn.Module:
    """Load a saved model, its float16 weights converted to float32."""
    config = DogeConfig.from_pretrained(folder)
    model = build(config, seed=0)
    state = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    return model.eval()
