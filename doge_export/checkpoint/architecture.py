"""What a checkpoint is, in one frozen value: everything later stages may ask about it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

CdmoeRouting = Literal["reference", "per-token"]
Generation = Literal["G1", "G2", "G3a", "G3b", "G4a", "G4b", "G5", "G6a", "G6b", "G7", "G8"]
MoeVariant = Literal["M0", "M1", "M4", "M5", "M6", "M7", "M7-fixed"]
Task = Literal["text-generation", "feature-extraction", "text-classification"]

TRANSFORMERS_CLASSES: dict[Task, str] = {
    "text-generation": "DogeForCausalLM",
    "feature-extraction": "DogeModel",
    "text-classification": "DogeForSequenceClassification",
}
"""The class of each task in transformers."""


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
class InnerValues:
    """Values of the first generation, read from a table instead of projected ("Inner Function Attention").

    Each of `num_heads` query heads of `retrieval_size` picks its `num_values_per_head` best of `num_values` rows.
    """

    num_values: int
    num_heads: int
    num_values_per_head: int
    retrieval_size: int


@dataclasses.dataclass(frozen=True)
class RatioMask:
    """Leaves out the keys of lowest score, a share of all keys, ranked before causality (fourth generation).

    Of T keys, those below the k-th lowest score of their head are left out, k = int(ratio * T), or with `of_excess`
    int(ratio * (T - keep_window_size)); none unless T > keep_window_size. `adds_causality`: a key both left out and
    not visible then counts less than one that is only one of the two, which decides rows that see no key at all.
    """

    ratio: float
    keep_window_size: int
    of_excess: bool
    adds_causality: bool


@dataclasses.dataclass(frozen=True)
class Moe:
    """Cross Domain Mixture of Experts: `num_experts` rows, `num_experts_per_tok` of them for each token and head.

    Routing scores are a projection's own output (M6, M7) or its match with product keys of `retrieval_size` (M0 to M5).
    """

    num_experts: int
    num_experts_per_tok: int
    variant: MoeVariant = "M7"
    num_heads: int = 1
    retrieval_size: int | None = None
    router_bias: bool = False

    @property
    def num_keys(self) -> int:
        """Keys of one routing half; experts from `num_keys ** 2` on are never reached."""
        return math.isqrt(self.num_experts)

    @property
    def mixes_tokens(self) -> bool:
        """Whether the reference routes a token by others' scores: it views [B, S, 2 * width] as [2, B * S, width]."""
        return self.variant in ("M4", "M5", "M6", "M7")

    @property
    def ranks_experts(self) -> bool:
        """Whether experts are named by ranks among the token's scores, not by keys: see `model.feedforward.Router`."""
        return self.variant in ("M5", "M6")

    @property
    def weights_inside(self) -> bool:
        """silu(<down_e, x> * weight) instead of silu(<down_e, x>) * weight."""
        return self.variant == "M0"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Doge decoder. Sizes have the names of transformers' DogeConfig; what else generations differ in stands below.

    Attributes:
        generation: its name in the README's table of generations; a label, no stage decides by it.
        keep_window_size: keys a row attends to, those of highest score; 0 where there is no such limit.
        qk_norm: RMSNorm on queries and keys.
        rotates_keys: RoPE turns keys too, not only queries.
        score: what s = A * softplus(dt_proj(v)) does to a key: "exp" adds exp(s) to its logits, "linear" adds s,
            "threshold" leaves the key out where exp(s) < 1, "none" nothing (no A and no dt_proj then).
        score_heads: rows of A; 1 without scores.
        inner_values: replaces v_proj.
        gated_mlp: SwiGLU; without the gate down(silu(up(x))).
        weighted_residuals: residuals are multiplied by a trained vector.
        task: what the checkpoint's head is for.
        labels: names of the classes of text-classification, in order.
        first_pad_pooling: classify by the token before the first padding one, not by the last real one.
    """

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
    score_heads: int
    moe: Moe | None = None
    generation: Generation = "G7"
    qk_norm: bool = True
    rotates_keys: bool = True
    score: Literal["exp", "linear", "threshold", "none"] = "exp"
    ratio_mask: RatioMask | None = None
    inner_values: InnerValues | None = None
    gated_mlp: bool = True
    weighted_residuals: bool = True
    task: Task = "text-generation"
    labels: tuple[str, ...] = ()
    pad_token_id: int | None = None
    first_pad_pooling: bool = False

    @property
    def trained_length(self) -> int | None:
        """The length beyond which RoPE's frequencies depend on the length; None where they never do."""
        match self.rope.rope_type:
            case "dynamic":
                return self.max_position_embeddings
            case "longrope":
                return self.rope.original_max_position_embeddings or self.max_position_embeddings
        return None

    def scales_rope(self, max_length: int) -> bool:
        """Return whether RoPE's frequencies depend on the length for sequences of up to `max_length` tokens."""
        return self.trained_length is not None and max_length > self.trained_length

    @property
    def cached_scores(self) -> int:
        """Rows of scores that are cached for a layer; a ratio mask keeps padding in one of its own."""
        return self.score_heads + (self.ratio_mask is not None)

    @property
    def may_fully_mask_rows(self) -> bool:
        """Whether a token may see no key at all, and then attends evenly to whatever is read, later tokens included."""
        return self.score == "threshold" or self.ratio_mask is not None

    def within(self, max_length: int) -> Architecture:
        """The same, without a ratio mask that sequences of up to `max_length` tokens are too short for."""
        if self.ratio_mask is None or self.selects_keys(max_length):
            return self
        return dataclasses.replace(self, ratio_mask=None)

    def selects_keys(self, max_length: int) -> bool:
        """Whether sequences of up to `max_length` tokens can lose keys to a selection by score."""
        if self.ratio_mask is not None:
            return max_length > self.ratio_mask.keep_window_size
        return self.score == "threshold" or 0 < self.keep_window_size < max_length

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the manifest and `inspect`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
