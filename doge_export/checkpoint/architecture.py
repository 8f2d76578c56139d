"""What a checkpoint is, in one frozen value: everything later stages may ask about it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

CdmoeRouting = Literal["reference", "per-token"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding, after transformers' `rope_parameters`.

    `rope_type` is one of default, linear, dynamic, yarn, longrope, llama3, proportional. The fields below are those
    that `ROPE_INIT_FUNCTIONS` of transformers reads for some type; None where the config does not give them.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None


@dataclasses.dataclass(frozen=True)
class Moe:
    """Cross Domain Mixture of Experts: `num_experts` rows, `num_experts_per_tok` of them for each token."""

    num_experts: int
    num_experts_per_tok: int

    @property
    def num_keys(self) -> int:
        """Keys of one routing half; experts from `num_keys ** 2` on are never reached."""
        return math.isqrt(self.num_experts)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Doge decoder. Names are those of transformers' DogeConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    keep_window_size: int
    rms_norm_eps: float
    rope: Rope
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    moe: Moe | None = None

    @property
    def trained_length(self) -> int | None:
        """The length beyond which RoPE's frequencies depend on the length; None where they never do."""
        match self.rope.rope_type:
            case "dynamic":
                return self.max_position_embeddings
            case "longrope":
                return self.rope.original_max_position_embeddings or self.max_position_embeddings
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest and `inspect`."""
        return dataclasses.asdict(self)
