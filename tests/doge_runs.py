"""Running a Doge: transformers' model, our module, and the inputs to feed them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from transformers import DogeForCausalLM, DynamicCache

from doge_export.checkpoint import Architecture
from doge_export.checkpoint.config import parse_todays_config
from doge_export.model import DogeForExport
from doge_export.validation.transformers_oracle import cached_in

Array = np.ndarray


def architecture_of(model: DogeForCausalLM) -> Architecture:
    """Ours of transformers' model."""
    return parse_todays_config(json.loads(model.config.to_json_string(use_diff=False)))


def module_of(model: DogeForCausalLM, **options: object) -> DogeForExport:
    """Our module with the parameters of transformers' model; options are those of `DogeForExport`."""
    architecture = architecture_of(model)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}  # a tied head comes once
    return DogeForExport.from_tensors(architecture, tensors, **options)


@torch.no_grad()
def transformers_logits(
    model: DogeForCausalLM, input_ids: Array, attention_mask: Array | None = None, chunks: Sequence[int] | None = None
) -> Array:
    """Logits [B, S, V], fed through a cache in pieces, from a rotary module that no earlier run has touched."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for size in chunks or [input_ids.shape[1]]:
        end = start + size
        output = model(
            input_ids=torch.from_numpy(input_ids[:, start:end]),
            attention_mask=torch.from_numpy(mask[:, :end]),
            position_ids=torch.from_numpy(positions(mask)[:, start:end]),
            **cached_in(model, cache),
        )
        logits.append(output.logits.numpy())
        start = end
    return np.concatenate(logits, axis=1)


@torch.no_grad()
def module_logits(
    module: DogeForExport, input_ids: Array, attention_mask: Array | None = None, chunks: Sequence[int] | None = None
) -> Array:
    """Logits [B, S, V] of our module, fed likewise."""
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    cache, logits, start = None, [], 0
    for size in chunks or [input_ids.shape[1]]:
        part = slice(start, start + size)
        piece, cache = module(*(torch.from_numpy(x[:, part]) for x in (input_ids, mask, positions(mask))), cache)
        logits.append(piece.numpy())
        start += size
    return np.concatenate(logits, axis=1)


def positions(attention_mask: Array) -> Array:
    """Position ids [B, S]: real tokens count, padding does not."""
    return np.maximum(attention_mask.cumsum(axis=1) - 1, 0)


def distinct_ids(batch: int, length: int, vocab_size: int = 320, seed: int = 0) -> Array:
    """Token ids [B, S] int64, none twice in a row: equal tokens have equal scores in the first layer, and which of two
    equals transformers keeps is open."""
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(vocab_size)[:length] for _ in range(batch)])


def left_padded(length: int, *padding: int) -> Array:
    """Attention mask [B, S] of rows that begin with so many padding tokens."""
    return (np.arange(length) >= np.array(padding)[:, None]).astype(np.int64)


ONNXRUNTIME = 1e-4
"""The bound where torch and onnxruntime are compared: a key's score is an exponential that reaches 26 in these models
and is then exponentiated again, so that kernels a few units in the last place apart differ by 4e-5 in the logits."""


def assert_equal_to_rounding(actual: Array, expected: Array, bound: float = 2e-5) -> None:
    """Equal but for the order of float32 sums: to `bound` times the size of what is expected."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    difference, size = np.abs(actual - expected).max(initial=0), np.sqrt(np.mean(np.square(expected)))
    assert difference <= bound * size, f"differs by {difference / size:.1e} of {size:.2g}"
