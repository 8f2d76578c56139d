"""The tensors of a checkpoint: canonical names (those of transformers' DogeForCausalLM) and their shapes."""

from __future__ import annotations

from collections.abc import Iterable

from doge_export.checkpoint.architecture import Architecture

Shape = tuple[int, ...]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _layer(architecture: Architecture) -> dict[str, Shape]:
    a = architecture
    hidden, biased = a.hidden_size, a.attention_bias
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "input_residual": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "post_attention_residual": (hidden,),
        "self_attn.A": (a.num_key_value_heads,),
        "self_attn.q_norm.weight": (a.head_dim,),
        "self_attn.k_norm.weight": (a.head_dim,),
        **_linear("self_attn.q_proj", queries, hidden, biased),
        **_linear("self_attn.k_proj", keys, hidden, biased),
        **_linear("self_attn.v_proj", keys, hidden, biased),
        **_linear("self_attn.dt_proj", a.num_key_value_heads, keys, biased),
        **_linear("self_attn.o_proj", hidden, queries, biased),
        **_linear("mlp.gate_proj", a.intermediate_size, hidden, a.mlp_bias),
        **_linear("mlp.up_proj", a.intermediate_size, hidden, a.mlp_bias),
        **_linear("mlp.down_proj", hidden, a.intermediate_size, a.mlp_bias),
    }
    if a.moe is not None:
        shapes["mlp.router_gate.weight"] = (2 * a.moe.num_keys, hidden)
        shapes["mlp.down_embed.weight"] = (a.moe.num_experts, hidden)
        shapes["mlp.up_embed.weight"] = (a.moe.num_experts, hidden)
    return shapes


def expected_tensors(architecture: Architecture) -> dict[str, Shape]:
    """Name -> shape of every tensor the architecture has; a tied head is not a tensor of its own."""
    embedding = (architecture.vocab_size, architecture.hidden_size)
    shapes: dict[str, Shape] = {EMBEDDING: embedding, "model.norm.weight": (architecture.hidden_size,)}
    layer = _layer(architecture)
    for index in range(architecture.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not architecture.tie_word_embeddings:
        shapes[HEAD] = embedding
    return shapes


# Parts of names that only older generations have, the oldest first.
_OLDER_MARKS = (
    ".v_embed",
    ".dynamic_mask",
    ".pre_sequence_layernorm.",
    ".pre_layernorm.",
    "word_embed.",
    ".feed_forward.",
)


def older_generation(names: Iterable[str]) -> str | None:
    """What in these tensor names gives away a Doge from before today's format; None where nothing does."""
    names = sorted(names)
    for mark in _OLDER_MARKS:
        for name in names:
            if mark in name:
                return name
    in_layers = [name for name in names if "layers." in name]
    if in_layers and not any(".q_norm." in name for name in in_layers):
        return "no self_attn.q_norm tensors"
    return None
