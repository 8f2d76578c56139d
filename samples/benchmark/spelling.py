"""Names and shapes of the tensors of each Doge generation, from a `config.json` with the keys of that generation.

They are taken from the published code, not from doge-export, so that tests can compare the two. Experts are M0 to M7 by
the form of their router:

    M0, M1       queries and keys with several heads         M4, M5       queries_proj and keys, one head
    M2, M3       queries_proj and keys with several heads    M6, M7       router_gate
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Shape = tuple[int, ...]

OLD = {"embedding": "word_embed", "norm": "final_layernorm", "mlp": "feed_forward"}
INNER = OLD | {"attention": "attn", "first_norm": "in_attn_layernorm", "second_norm": "in_ff_layernorm"}
SEQUENCE = OLD | {
    "attention": "attn",
    "first_norm": "pre_sequence_layernorm",
    "first_residual": "post_sequence_residual.weight",
    "second_norm": "pre_state_layernorm",
    "second_residual": "post_state_residual.weight",
}
PRE = OLD | {
    "attention": "self_attn",
    "first_norm": "pre_layernorm",
    "first_residual": "pre_residual.weight",
    "second_norm": "post_layernorm",
    "second_residual": "post_residual.weight",
}
TODAY = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "mlp": "mlp",
    "attention": "self_attn",
    "first_norm": "input_layernorm",
    "first_residual": "input_residual",
    "second_norm": "post_attention_layernorm",
    "second_residual": "post_attention_residual",
}
NAMES: dict[str, dict[str, str]] = {
    "G1": INNER,
    "G2-early": INNER,
    "G2": SEQUENCE,
    "G3a": SEQUENCE,
    "G3b": PRE,
    "G4a": PRE,
    "G4b": PRE,
    **dict.fromkeys(("G5", "G6a", "G6b", "G7", "G8"), TODAY),
}
BY_KV_HEAD = ("G6b", "G7", "G8")  # rows of A; one for each query head before
NORMED = ("G6a", "G6b", "G7", "G8")


def linear(name: str, rows: int, columns: int, bias: bool = False) -> dict[str, Shape]:
    """Return the shapes of a weight and, if it has one, of its bias."""
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the number of query heads, the number of key/value heads, and the size of a head."""
    count = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // count
    return count, config.get("num_key_value_heads") or count, size


def attention(generation: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name -> shape of the tensors of an attention layer."""
    hidden = config["hidden_size"]
    count, kv_count, size = heads(config)
    queries, keys = count * size, kv_count * size
    biased = config.get("attention_bias", config.get("hidden_bias", False))
    shapes = linear("q_proj", queries, hidden, biased) | linear("k_proj", keys, hidden, biased)
    shapes |= linear("o_proj", hidden, queries, biased)
    if generation == "G1":
        width, rows = config["inner_values_retrieval_size"], config["num_inner_values"]
        inner_heads = config.get("num_inner_value_heads")  # one head only before 13 November 2024
        shapes |= linear("v_queries", (inner_heads or 1) * width, hidden, biased)
        shapes["v_keys"] = (inner_heads, width, rows) if inner_heads else (rows, width)
        shapes["v_embed.weight"] = (rows, hidden)
    else:
        shapes |= linear("v_proj", keys, hidden, biased)
    if generation in ("G1", "G2-early", "G2"):
        return shapes | {"dynamic_mask": (count, config["max_position_embeddings"])}
    scored = kv_count if generation in BY_KV_HEAD else count
    read = queries if generation in ("G3a", "G3b") else keys
    shapes |= {"A": (scored,)} | linear("dt_proj", scored, read, biased)
    if generation in NORMED:
        shapes |= {"q_norm.weight": (size,), "k_norm.weight": (size,)}
    return shapes


def expert_sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of experts and of routing heads, whose config keys were renamed twice."""
    experts = next(config[key] for key in ("num_experts", "num_cdmoe_experts", "num_cdmmoe_experts") if key in config)
    return experts, config.get("num_cdmoe_heads") or config.get("num_cdmmoe_heads") or 1


def feed_forward(generation: str, cdmoe: str | None, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name -> shape of a feed-forward layer. `cdmoe` "M0-shared" is M0 with the names of 11 November 2024."""
    hidden, inner, biased = config["hidden_size"], config["intermediate_size"], False
    if generation != "G6a":  # whose MLP never had biases
        biased = config.get("mlp_bias", config.get("hidden_bias", False))
    shared = "shared_" if cdmoe == "M0-shared" else ""
    shapes = {} if generation == "G1" else linear("gate_proj", inner, hidden, biased)
    shapes |= linear(f"{shared}up_proj", inner, hidden, biased) | linear(f"{shared}down_proj", hidden, inner, biased)
    if cdmoe is None:
        return shapes
    experts, routing_heads = expert_sizes(config)
    keys = math.isqrt(experts)
    width = config.get("private_expert_retrieval_size", config.get("expert_retrieval_size", 0))
    match cdmoe:
        case "M0" | "M0-shared" | "M1":
            shapes |= linear("queries", routing_heads * width, hidden)
            shapes["keys"] = (routing_heads, keys, 2, width // 2)
        case "M2":
            shapes |= linear("queries_proj", routing_heads * width, hidden)
            shapes["keys"] = (routing_heads, width, keys)
        case "M3":
            shapes |= linear("queries_proj", routing_heads * width, hidden)
            shapes["keys"] = (2 * routing_heads, width // 2, keys)
        case "M4" | "M5":
            shapes |= linear("queries_proj", width, hidden)
            shapes["keys"] = (2, width // 2, keys)
        case "M6-bias":  # the first month of M6
            shapes |= linear("router_gate", 2 * keys, hidden, bias=True)
        case "M6" | "M7":
            shapes |= linear("router_gate", 2 * keys, hidden)
    return shapes | {"down_embed.weight": (experts, hidden), "up_embed.weight": (experts, hidden)}


def tensors(
    generation: str, cdmoe: str | None, config: Mapping[str, Any], head: str | None = "lm_head", labels: int = 0
) -> dict[str, Shape]:
    """Return name -> shape of every tensor, as published.

    `head` is "lm_head" (stored only if it is not tied to the embedding), "score", "classifier", or None for the bare
    decoder, whose names have no prefix.
    """
    names, hidden = NAMES[generation], (config["hidden_size"],)
    layer: dict[str, Shape] = {f"{names['first_norm']}.weight": hidden, f"{names['second_norm']}.weight": hidden}
    layer |= {names[key]: hidden for key in ("first_residual", "second_residual") if key in names}
    layer |= {f"{names['attention']}.{name}": shape for name, shape in attention(generation, config).items()}
    layer |= {f"{names['mlp']}.{name}": shape for name, shape in feed_forward(generation, cdmoe, config).items()}

    embedding = (config["vocab_size"], config["hidden_size"])
    prefix = "" if head is None else "model."
    shapes: dict[str, Shape] = {f"{prefix}{names['embedding']}.weight": embedding}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"{prefix}layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes[f"{prefix}{names['norm']}.weight"] = hidden
    if head in ("score", "classifier"):
        shapes[f"{head}.weight"] = (labels, config["hidden_size"])
    elif head == "lm_head" and not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = embedding
    return shapes
