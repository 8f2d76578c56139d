"""Rotary position embedding: angles as a pure function of the positions.

The frequencies of every type are those of transformers 5.23, `modeling_rope_utils.ROPE_INIT_FUNCTIONS`. transformers
keeps state in its module (the longest length seen); here "dynamic" and "longrope" look at the positions of the call
alone, which is what a fresh transformers module computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from doge_export.checkpoint.architecture import Architecture, Rope
from doge_export.checkpoint.rope_factor import attention_factor


def _powers(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim


def _yarn(rope: Rope, head_dim: int, max_position_embeddings: int) -> Tensor:
    """YaRN, https://arxiv.org/abs/2309.00071: interpolate slow frequencies, keep fast ones, ramp between."""
    original = rope.original_max_position_embeddings or max_position_embeddings
    factor = rope.factor if rope.factor is not None else max_position_embeddings / original

    def correction(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = correction(rope.beta_fast or 32), correction(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    interpolated = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)

    frequencies = rope.rope_theta ** _powers(head_dim)
    return 1.0 / (factor * frequencies) * interpolated + 1.0 / frequencies * (1 - interpolated)


def _llama3(rope: Rope, head_dim: int, max_position_embeddings: int) -> Tensor:
    original = rope.original_max_position_embeddings or max_position_embeddings
    assert rope.factor and rope.low_freq_factor and rope.high_freq_factor  # the config parser requires them
    inverse = 1.0 / rope.rope_theta ** _powers(head_dim)
    wavelength = 2 * math.pi / inverse
    slow, fast = original / rope.low_freq_factor, original / rope.high_freq_factor
    smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
    scaled = torch.where(wavelength > slow, inverse / rope.factor, inverse)
    return torch.where((wavelength >= fast) & (wavelength <= slow), blended, scaled)


def _divided(rope: Rope, head_dim: int, factors: tuple[float, ...] | None) -> Tensor:
    assert factors is not None  # the config parser requires them
    return 1.0 / (torch.tensor(factors) * rope.rope_theta ** _powers(head_dim))


def _proportional(rope: Rope, head_dim: int) -> Tensor:
    """Only the first `partial_rotary_factor` of the frequencies turn, the rest stand still."""
    turning = int(rope.partial_rotary_factor * head_dim // 2)
    inverse = 1.0 / rope.rope_theta ** _powers(head_dim)
    inverse[turning:] = 0.0
    return inverse / (rope.factor or 1.0)


def inverse_frequencies(rope: Rope, head_dim: int, max_position_embeddings: int) -> Tensor:
    """Frequencies [head_dim / 2] float32 in radians per position for short sequences."""
    match rope.rope_type:
        case "default" | "dynamic":
            return 1.0 / rope.rope_theta ** _powers(head_dim)
        case "linear":
            assert rope.factor
            return 1.0 / rope.rope_theta ** _powers(head_dim) / rope.factor
        case "yarn":
            return _yarn(rope, head_dim, max_position_embeddings)
        case "llama3":
            return _llama3(rope, head_dim, max_position_embeddings)
        case "longrope":
            return _divided(rope, head_dim, rope.short_factor)
        case "proportional":
            return _proportional(rope, head_dim)
    raise ValueError(f"unknown RoPE type {rope.rope_type!r}")


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotation angles.

    Args:
        architecture: whose `rope`, `head_dim` and `max_position_embeddings` decide the frequencies.
        max_length: the longest sequence that will be asked for; up to the trained length the frequencies are constant
            and the graph holds no trace of the scaling.
    """

    def __init__(self, architecture: Architecture, max_length: int) -> None:
        super().__init__()
        self.rope = architecture.rope
        self.head_dim = architecture.head_dim
        self.max_position_embeddings = architecture.max_position_embeddings
        inverse = inverse_frequencies(self.rope, self.head_dim, self.max_position_embeddings)
        self.attention_scaling = attention_factor(self.rope, self.max_position_embeddings)
        self.inv_freq = nn.Buffer(inverse, persistent=False)
        self.scales_beyond = architecture.trained_length if architecture.scales_rope(max_length) else None
        if self.rope.rope_type == "longrope":
            self.long_inv_freq = nn.Buffer(_divided(self.rope, self.head_dim, self.rope.long_factor), persistent=False)
        self.powers = nn.Buffer(_powers(self.head_dim), persistent=False)

    def _frequencies(self, position_ids: Tensor) -> Tensor:
        if self.scales_beyond is None:
            return self.inv_freq
        length = position_ids.max() + 1
        if self.rope.rope_type == "longrope":
            return torch.where(length > self.scales_beyond, self.long_inv_freq, self.inv_freq)
        # Dynamic NTK: theta' = theta * (f * s / M - (f - 1)) ^ (D / (D - 2)), s the longest length of the whole batch.
        factor = self.rope.factor or 1.0
        stretch = factor * length.clamp(min=self.scales_beyond).float() / self.max_position_embeddings - (factor - 1)
        theta = self.rope.rope_theta * stretch ** (self.head_dim / (self.head_dim - 2))
        return torch.reciprocal(theta**self.powers)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, S] int64 -> cos and sin, each [B, S, D / 2] float32."""
        angles = position_ids[..., None].float() * self._frequencies(position_ids)
        if self.attention_scaling == 1.0:
            return angles.cos(), angles.sin()
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


@torch.library.custom_op("doge::rotate", mutates_args=())
def rotate(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Rotate the two halves of every head: [B, S, heads * D] by cos, sin [B, S, D / 2], as Llama pairs dimensions.

    A custom op only so that the graph holds one RotaryEmbedding node where the formula stands here.
    """
    first, second = x.unflatten(-1, (num_heads, -1)).chunk(2, dim=-1)
    cos, sin = cos[:, :, None, :].to(x.dtype), sin[:, :, None, :].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(2)


@rotate.register_fake
def _(x, cos, sin, num_heads):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _rotate_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, ctx.cos, ctx.sin, ctx.num_heads = inputs


def _rotate_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    # A rotation's transpose turns the other way.
    return rotate(gradient.contiguous(), ctx.cos, -ctx.sin, ctx.num_heads), None, None, None


rotate.register_autograd(_rotate_backward, setup_context=_rotate_setup)
