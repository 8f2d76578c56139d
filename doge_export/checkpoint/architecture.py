"""The architecture of a checkpoint as one frozen value, which is all that later stages read of its config."""

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
"""The transformers class of each task."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding, after transformers' `rope_parameters`.

    `rope_type` is one of default, linear, dynamic, yarn, longrope, llama3, proportional. Each type's function in
    `ROPE_INIT_FUNCTIONS` of transformers reads some of the other fields; a field the config does not give is None.
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
    """Attention values looked up in a table instead of projected ("Inner Function Attention", G1).

    The table has `num_values` rows. Each of `num_heads` query heads, `retrieval_size` wide, picks its
    `num_values_per_head` best rows.
    """

    num_values: int
    num_heads: int
    num_values_per_head: int
    retrieval_size: int


@dataclasses.dataclass(frozen=True)
class RatioMask:
    """A mask over the keys of lowest score, a share of all keys, ranked without regard to causality (G4, G6a).

    Attributes:
        ratio: share of the keys to mask.
        keep_window_size: up to this number of keys T none is masked. Beyond it, a head masks the keys below its k-th
            lowest score.
        of_excess: k = int(ratio * (T - keep_window_size)) instead of int(ratio * T).
        adds_causality: the ratio mask and the causal mask are added, so a key masked by both weighs less than one
            masked by either. This decides the output of a query all of whose keys are masked.
    """

    ratio: float
    keep_window_size: int
    of_excess: bool
    adds_causality: bool


@dataclasses.dataclass(frozen=True)
class Moe:
    """Cross Domain Mixture of Experts (CDMoE): each routing head picks `num_experts_per_tok` experts for each token.

    An expert is one row of each of two tables with `num_experts` rows. Its routing score is the sum of one score from
    each of two halves: a linear projection of the token (M6, M7), or that projection matched with product keys, which
    are `retrieval_size` wide (M0 to M5).
    """

    num_experts: int
    num_experts_per_tok: int
    variant: MoeVariant = "M7"
    num_heads: int = 1
    retrieval_size: int | None = None
    router_bias: bool = False

    @property
    def num_keys(self) -> int:
        """Number of scores in a routing half; experts numbered `num_keys ** 2` or more are never picked."""
        return math.isqrt(self.num_experts)

    @property
    def mixes_tokens(self) -> bool:
        """True where the published code routes a token by other tokens' scores.

        That code views the projection [B, S, 2 * width] as [2, B * S, width], which mixes the tokens of a call.
        """
        return self.variant in ("M4", "M5", "M6", "M7")

    @property
    def ranks_experts(self) -> bool:
        """True where experts are numbered by rank among the token's scores; see `model.feedforward.Router`."""
        return self.variant in ("M5", "M6")

    @property
    def weights_inside(self) -> bool:
        """True where expert e computes silu(<down_e, x> * weight) instead of silu(<down_e, x>) * weight."""
        return self.variant == "M0"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Doge decoder and its head. Fields that are not listed have the meaning of transformers' DogeConfig.

    The graph is built from these fields and never from `generation`, which decides two other things: which tensors the
    files hold (`naming.stored_tensors`) and which reference validates the export (`validation.references`).

    Attributes:
        keep_window_size: number of keys a query attends to, those of highest score; 0 for no limit.
        score_heads: length of A; 1 without scores.
        moe: the mixture of experts; None for a dense model.
        generation: name in the README's table of generations.
        qk_norm: True where queries and keys pass an RMSNorm.
        rotates_keys: True where RoPE rotates keys as well as queries.
        score: effect of s = A * softplus(dt_proj(v)) on the key of value v: "exp" adds exp(s) to its logits, "linear"
            adds s, "threshold" masks the key if exp(s) < 1. "none" has neither A nor dt_proj.
        ratio_mask: masks a share of the keys; None without such a mask.
        inner_values: values looked up in a table, instead of v_proj; None for v_proj.
        gated_mlp: True for SwiGLU, False for down(silu(up(x))).
        weighted_residuals: True where residuals are multiplied by a trained vector.
        task: task of the checkpoint's head.
        labels: class names of text-classification, in order.
        pad_token_id: padding token, read by text-classification; None without one.
        first_pad_pooling: True to classify by the token before the first padding token, False by the last token that
            is no padding.
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
        """Length in tokens beyond which RoPE's frequencies depend on the length; None where they never do."""
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
        """Number of score rows in a layer's cache; a ratio mask needs one more, which marks padding."""
        return self.score_heads + (self.ratio_mask is not None)

    @property
    def may_fully_mask_rows(self) -> bool:
        """Whether a token may see no key at all, and then attends evenly to whatever is read, later tokens included."""
        return self.score == "threshold" or self.ratio_mask is not None

    def within(self, max_length: int) -> Architecture:
        """Return this architecture, without a ratio mask that masks nothing in up to `max_length` tokens."""
        if self.ratio_mask is None or self.selects_keys(max_length):
            return self
        return dataclasses.replace(self, ratio_mask=None)

    def selects_keys(self, max_length: int) -> bool:
        """Return whether the scores can mask a key in sequences of up to `max_length` tokens."""
        if self.ratio_mask is not None:
            return max_length > self.ratio_mask.keep_window_size
        return self.score == "threshold" or 0 < self.keep_window_size < max_length

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, for the manifest and `inspect`."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # tuples become lists
