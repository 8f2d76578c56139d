"""Canonical names of a checkpoint's tensors, which are those of transformers' DogeForCausalLM, and their shapes.

A tensor that today's Doge lacks is named below the module it replaces, such as `self_attn.v_proj.table.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from doge_export.checkpoint.architecture import Architecture
from doge_export.checkpoint.identify import Shape
from doge_export.errors import DogeExportError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
CLASSIFIER = "score.weight"
LAYER = "model.layers.{}."

# Naming schemes of four eras, each a list of (name then, canonical name). A name is one or more whole dotted parts.
_BEFORE_TRANSFORMERS = [
    ("word_embed", "embed_tokens"),
    ("final_layernorm", "norm"),
    ("classifier", "score"),
    ("feed_forward.shared_up_proj", "mlp.up_proj"),
    ("feed_forward.shared_down_proj", "mlp.down_proj"),
    ("feed_forward.queries", "mlp.router_gate"),
    ("feed_forward.queries_proj", "mlp.router_gate"),
    ("feed_forward.keys", "mlp.router_gate.keys"),
    ("feed_forward", "mlp"),
]
_INNER_FUNCTION = [
    *_BEFORE_TRANSFORMERS,
    ("attn.v_queries", "self_attn.v_proj.queries"),
    ("attn.v_keys", "self_attn.v_proj.keys"),
    ("attn.v_embed", "self_attn.v_proj.table"),
    ("attn", "self_attn"),
    ("in_attn_layernorm", "input_layernorm"),
    ("in_ff_layernorm", "post_attention_layernorm"),
]
_SEQUENCE_AND_STATE = [
    *_BEFORE_TRANSFORMERS,
    ("attn", "self_attn"),
    ("pre_sequence_layernorm", "input_layernorm"),
    ("post_sequence_residual.weight", "input_residual"),
    ("pre_state_layernorm", "post_attention_layernorm"),
    ("post_state_residual.weight", "post_attention_residual"),
]
_PRE_AND_POST = [
    *_BEFORE_TRANSFORMERS,
    ("pre_layernorm", "input_layernorm"),
    ("pre_residual.weight", "input_residual"),
    ("post_layernorm", "post_attention_layernorm"),
    ("post_residual.weight", "post_attention_residual"),
]
_TODAY = [
    ("mlp.queries_proj", "mlp.router_gate"),
    ("mlp.keys", "mlp.router_gate.keys"),
    ("input_residual.weight", "input_residual"),
    ("post_attention_residual.weight", "post_attention_residual"),
]
# The name of the norm before attention identifies the era.
_ERAS = {
    "in_attn_layernorm": _INNER_FUNCTION,
    "pre_sequence_layernorm": _SEQUENCE_AND_STATE,
    "pre_layernorm": _PRE_AND_POST,
    "input_layernorm": _TODAY,
}


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Return canonical name -> name in the files, for every tensor.

    The norm before the first attention layer identifies the era. Names of other old eras stay as they are, so that
    they are reported as unexpected.

    Raises:
        DogeExportError: two tensors have one canonical name, or today's names stand among those of an older era.
    """
    names = sorted(names)
    rules = next((rules for norm, rules in _ERAS.items() if any(f"layers.0.{norm}.weight" in n for n in names)), _TODAY)
    bare = not any(name.startswith("model.") for name in names)
    found: dict[str, str] = {}
    for name in names:
        canonical = name
        for old, new in rules:
            canonical = _run(old).sub(new, canonical)
        # The fourth generation used both names of its classifier.
        if rules is not _TODAY and name != CLASSIFIER and any(_run(new).search(name) for _, new in rules):
            raise DogeExportError(
                f"tensor {name} has a name of today among those of an older generation: two checkpoints are mixed,"
                " fetch the whole of one"
            )
        if bare and canonical not in (HEAD, CLASSIFIER):
            canonical = f"model.{canonical}"
        if canonical in found:
            raise DogeExportError(f"tensors {found[canonical]} and {name} are one and the same ({canonical})")
        found[canonical] = name
    return found


def _run(part: str) -> re.Pattern[str]:
    """Compile a pattern that finds `part` in a name, only as whole dotted parts."""
    return re.compile(rf"(?<![^.]){re.escape(part)}(?![^.])")


def first_layer(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return name -> shape of the first layer's tensors, without the prefix `model.layers.0.`."""
    prefix = LAYER.format(0)
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _attention(a: Architecture) -> dict[str, Shape]:
    hidden, biased = a.hidden_size, a.attention_bias
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    shapes = _linear("q_proj", queries, hidden, biased)
    shapes |= _linear("k_proj", keys, hidden, biased) | _linear("o_proj", hidden, queries, biased)
    if a.inner_values is None:
        shapes |= _linear("v_proj", keys, hidden, biased)
    else:
        inner = a.inner_values
        shapes |= _linear("v_proj.queries", inner.num_heads * inner.retrieval_size, hidden, biased)
        shapes["v_proj.keys"] = (inner.num_heads, inner.retrieval_size, inner.num_values)
        shapes["v_proj.table.weight"] = (inner.num_values, hidden)
    if a.score != "none":
        shapes |= {"A": (a.score_heads,)} | _linear("dt_proj", a.score_heads, keys, biased)
    if a.qk_norm:
        shapes |= {"q_norm.weight": (a.head_dim,), "k_norm.weight": (a.head_dim,)}
    return shapes


def _feed_forward(a: Architecture) -> dict[str, Shape]:
    shapes = _linear("gate_proj", a.intermediate_size, a.hidden_size, a.mlp_bias) if a.gated_mlp else {}
    shapes |= _linear("up_proj", a.intermediate_size, a.hidden_size, a.mlp_bias)
    shapes |= _linear("down_proj", a.hidden_size, a.intermediate_size, a.mlp_bias)
    if a.moe is not None:
        moe = a.moe
        width = moe.num_keys if moe.retrieval_size is None else moe.retrieval_size // 2
        shapes |= _linear("router_gate", 2 * moe.num_heads * width, a.hidden_size, moe.router_bias)
        if moe.retrieval_size is not None:
            shapes["router_gate.keys"] = (2, moe.num_heads, width, moe.num_keys)
        shapes |= dict.fromkeys(("down_embed.weight", "up_embed.weight"), (moe.num_experts, a.hidden_size))
    return shapes


def stored_tensors(architecture: Architecture) -> dict[str, Shape]:
    """Return canonical name -> shape of every tensor in the files.

    They differ from `expected_tensors` by the dt_proj of G3, which is not folded yet, and by the dynamic_mask of G1
    and G2, which has no effect.
    """
    a, shapes = architecture, expected_tensors(architecture)
    for layer in map(LAYER.format, range(a.num_hidden_layers)):
        if a.score == "threshold":
            shapes[f"{layer}self_attn.dt_proj.weight"] = (a.score_heads, a.num_attention_heads * a.head_dim)
        if a.generation in ("G1", "G2"):
            shapes[f"{layer}self_attn.dynamic_mask"] = (a.num_attention_heads, a.max_position_embeddings)
    return shapes


def expected_tensors(architecture: Architecture) -> dict[str, Shape]:
    """Return canonical name -> shape of every tensor of the architecture; a tied head is not a tensor of its own."""
    hidden = (architecture.hidden_size,)
    layer: dict[str, Shape] = {"input_layernorm.weight": hidden, "post_attention_layernorm.weight": hidden}
    if architecture.weighted_residuals:
        layer |= {"input_residual": hidden, "post_attention_residual": hidden}
    layer |= {f"self_attn.{name}": shape for name, shape in _attention(architecture).items()}
    layer |= {f"mlp.{name}": shape for name, shape in _feed_forward(architecture).items()}

    embedding = (architecture.vocab_size, architecture.hidden_size)
    shapes: dict[str, Shape] = {EMBEDDING: embedding, "model.norm.weight": hidden}
    for index in range(architecture.num_hidden_layers):
        shapes |= {LAYER.format(index) + name: shape for name, shape in layer.items()}
    if architecture.task == "text-classification":
        shapes[CLASSIFIER] = (len(architecture.labels), architecture.hidden_size)
    elif architecture.task == "text-generation" and not architecture.tie_word_embeddings:
        shapes[HEAD] = embedding
    return shapes
