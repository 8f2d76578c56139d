"""Weights in fewer bits against PyTorch with the same codes, and the int8 cache."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from doge_cpu import BFLOAT16, FLOAT16, INT8, config_of, weights_of
from doge_runs import assert_equal_to_rounding, distinct_ids, module_logits
from random_doge import MAX_LENGTH, MOE

from doge_export.quantization.blocks import Blocks
from doge_export.quantization.rounding import fitted, nearest

SIZES = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32, "num_hidden_layers": 2}


def _block(width: int) -> int:
    return next(block for block in (128, 64, 32, 16) if width % block == 0)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Inputs rounded to 8 bits in blocks, the largest to 127."""
    blocks = x.unflatten(-1, (-1, _block(x.shape[-1])))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale).flatten(-2)


def _stored(name: str, values: np.ndarray, bits: int) -> Blocks | np.ndarray:
    """As quantization/recipe.py: small matrices stay float32."""
    if values.size < 2**12 and "dt_proj" in name:
        return values
    if bits == 4 and "v_proj" in name:  # a sensitive layer
        bits = 8
    block = _block(values.shape[1])
    return nearest(values, 8, block) if bits == 8 else fitted(values, 4, min(block, 32 if "down" in name else 128))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("changes", [{}, MOE], ids=["dense", "moe"])
def test_as_the_same_codes_in_pytorch(library, random_module, bits, changes):
    module = random_module(tame=True, **SIZES, **changes)
    stored: dict[str, Blocks | np.ndarray] = {}
    config = config_of(module.architecture, MAX_LENGTH)

    def store(name: str, values: np.ndarray) -> Blocks | np.ndarray:
        return stored.setdefault(name, _stored(name, values, bits))

    file = library.file(config, list(weights_of(module, MAX_LENGTH, store)))
    reference = copy.deepcopy(module)
    for name, weight in reference.named_parameters():
        kept = stored.get(name)
        if isinstance(kept, Blocks):
            weight.data = torch.from_numpy(kept.dequantized())
    reference.double()
    head = "model.embed_tokens" if module.architecture.tie_word_embeddings else "lm_head"
    for name, layer in reference.named_modules():
        if isinstance(layer, torch.nn.Linear) and isinstance(stored.get(f"{name}.weight"), Blocks):
            layer.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
    assert isinstance(stored[f"{head}.weight"], Blocks)  # the module multiplies with it, and calls no layer
    reference.model.norm.register_forward_hook(lambda _, inputs, output: _rounded(output))
    ids = distinct_ids(2, 40)
    expected = module_logits(reference, ids)
    for instruction_set in library.usable:
        for chunks in (None, [13, *[1] * 27]):
            logits = library.open(file, 2, instruction_set).logits(ids, chunks=chunks)
            # An input near the middle of two codes is rounded the other way where sums differ in the last bits; that
            # reaches later tokens, and may change their experts. So the reference is float64. With these ids of the
            # MoE at 8 bits this library differs from it in 3 % of the tokens, PyTorch in float32 in 25 %; with 12 other
            # sets of ids and bits in 0 to 20 % and 0 to 61 %. Another order of sums may meet any of these.
            error = np.abs(logits - expected) / np.sqrt(np.mean(np.square(expected)))
            assert np.median(error) < 2e-5
            assert np.mean(error.max(-1) > 1e-3) < 0.25


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16])
def test_weights_of_16_bits(library, random_module, kind):
    """Exactly the rounded weights: what is computed is float32."""
    module = random_module(tame=True, **SIZES)
    weights = list(weights_of(module, MAX_LENGTH, lambda _, values: (values, kind)))
    file = library.file(config_of(module.architecture, MAX_LENGTH), weights)
    reference, dtype = copy.deepcopy(module), torch.float16 if kind == FLOAT16 else torch.bfloat16
    for parameter in reference.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype).float()
    ids = distinct_ids(2, 40)
    for instruction_set in library.usable:
        assert_equal_to_rounding(
            library.open(file, 2, instruction_set).logits(ids), module_logits(reference, ids), 5e-5
        )


def test_the_int8_cache_costs_little(library, random_module, packed):
    module = random_module(tame=True, **SIZES)
    model, ids = library.open(packed(module), 2), distinct_ids(2, 44)
    exact, rounded = model.logits(ids), model.logits(ids, cache=INT8)
    error = np.sqrt(np.mean(np.square(rounded - exact)) / np.mean(np.square(exact)))
    assert 0 < error < 0.02
    assert model.state(1, cache=INT8).bytes == 0
    assert_equal_to_rounding(model.logits(ids, cache=INT8, chunks=[30, *[1] * 14]), rounded, 0.05)
    small, large = model.state(1, cache=INT8), model.state(1)
    small.run(ids[:1]), large.run(ids[:1])
    assert small.bytes < 0.32 * large.bytes
