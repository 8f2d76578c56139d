"""A checkpoint that contradicts itself is refused in one line that says where."""

from __future__ import annotations

import pytest
import torch
from generations import refused
from older_doge import older_doge


def mixed(**renamed):
    """Renames parts of the names in the last layer."""

    def edit(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            for old, new in renamed.items():
                if f".{old}." in name:
                    tensors[name.replace(f".{old}.", f".{new}.")] = tensors.pop(name)

    return edit


def drop(part):
    def edit(tensors):
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return edit


def add(**shapes):
    return lambda tensors: tensors.update({name: torch.ones(shape) for name, shape in shapes.items()})


def shaped(name, *shape):
    return lambda tensors: tensors.update({name: torch.ones(shape)})


HARD, SOFT = "layers.1.self_attn.", "model.layers.1.self_attn."
# What would be left out is looked at first.
INERT = {
    "G3b without A": ("G3b", {"edit": drop("self_attn.A")}, r"2 missing \(model\.layers\.0\.self_attn\.A,"),
    "G3b without A in a layer": ("G3b", {"edit": drop(f"{HARD}A")}, r"1 missing \(model\.layers\.1\.self_attn\.A\)"),
    "G3a without scores": (
        "G3a",
        {"edit": lambda tensors: [drop(part)(tensors) for part in ("attn.A", "attn.dt_proj")]},
        r"4 missing \(model\.layers\.0\.self_attn\.A, model\.layers\.0\.self_attn\.dt_proj",
    ),
    "G3b dt_proj of a wrong shape": (
        "G3b",
        {"edit": shaped(f"{SOFT}dt_proj.weight", 4, 60)},
        r"dt_proj\.weight has shape \[4, 60\], config\.json implies \[4, 64\]",
    ),
    "G3b dt_proj over values that are not repeated": (
        "G3b",
        {"edit": shaped(f"{SOFT}dt_proj.weight", 4, 32)},
        r"dt_proj\.weight has shape \[4, 32\], config\.json implies \[4, 64\]",
    ),
    "G3b dt_proj without its bias": (
        "G3b",
        {"hidden_bias": True, "edit": drop(f"{HARD}dt_proj.bias")},
        r"1 missing \(model\.layers\.1\.self_attn\.dt_proj\.bias",
    ),
    "is_causal without dt_proj": (
        "G4b",
        {"is_causal": True, "edit": drop(f"{HARD}dt_proj")},
        r"1 missing \(model\.layers\.1\.self_attn\.dt_proj\.weight",
    ),
    "is_causal, A of a wrong shape": (
        "G4b",
        {"is_causal": True, "edit": shaped(f"{SOFT}A", 99)},
        r"self_attn\.A has shape \[99\], config\.json implies \[4\]",
    ),
    **{
        f"{generation} dynamic_mask {what}": (generation, {"edit": edit}, pattern)
        for generation in ("G1", "G2-early", "G2")
        for what, edit, pattern in [
            (
                "of a wrong shape",
                shaped("model.layers.1.attn.dynamic_mask", 1, 1),
                r"tensor model\.layers\.1\.attn\.dynamic_mask has shape \[1, 1\], config\.json implies \[4, 48\]",
            ),
            ("missing", drop("layers.1.attn.dynamic_mask"), r"1 missing \(model\.layers\.1\.self_attn\.dynamic_mask"),
        ]
    },
}

CONTRADICTIONS = {
    **INERT,
    "ratio of the fourth": (
        "G5",
        {"says": {"dynamic_mask_ratio": 0.5}},
        "dynamic_mask_ratio 0.5, .* tensors are of G5",
    ),
    "ratio on today's": ("G7", {"says": {"dynamic_mask_ratio": 0.5}}, "dynamic_mask_ratio 0.5.*--generation G7"),
    "inner values without a table": ("G7", {"says": {"num_inner_values": 8}}, "num_inner_values 8, .* of G7"),
    "inner values on the fourth": ("G4b", {"says": {"num_inner_values": 8}}, "num_inner_values 8, .* of G4b"),
    "window of G8 beside today's": ("G7", {"says": {"window_size": 64}}, "window_size 64, a value of generation G8"),
    "window of G8 on the fifth": ("G5", {"says": {"window_size": 64, "keep_window_size": ...}}, "window_size 64"),
    "window on the third": ("G3b", {"says": {"keep_window_size": 64}}, "keep_window_size 64, .* of G3b"),
    "window on the first": ("G1", {"says": {"keep_window_size": 64}}, "keep_window_size 64, .* of G1"),
    "is_causal on the fifth": ("G5", {"says": {"is_causal": True}}, "is_causal true, .* of G5"),
    "doge2 with old names": ("G4b", {"says": {"model_type": "doge2"}}, 'model_type "doge2", but .* G4b'),
    "doge2 without norms": ("G5", {"says": {"model_type": "doge2"}}, 'model_type "doge2", but .* G5'),
    "doge with rows for query heads": ("G6a", {"says": {"model_type": "doge"}}, 'model_type "doge", but .* G6a'),
    "dense config, experts": ("G7", {"cdmoe": "M7", "says": {"is_moe": False}}, "is_moe false, but the checkpoint has"),
    "no is_moe, experts": ("G5", {"cdmoe": "M7", "says": {"is_moe": ...}}, "has no is_moe, which means false, but"),
    "experts config, dense": ("G4b", {"says": {"is_moe": True}}, "is_moe true, but the checkpoint has no down_embed"),
    "classifier named, language model there": (
        "G7",
        {"says": {"architectures": ["DogeForSequenceClassification"]}},
        r"names DogeForSequenceClassification, but there is no score\.weight",
    ),
    "second Doge's classifier named": (
        "G6b",
        {"says": {"architectures": ["Doge2ForSequenceClassification"]}},
        "names Doge2ForSequenceClassification",
    ),
    "language model named, classifier there": (
        "G7",
        {"head": "score", "says": {"architectures": ["DogeForCausalLM"]}},
        r"names DogeForCausalLM, but the head is score\.weight",
    ),
    "two heads": ("G7", {"edit": add(**{"score.weight": (3, 64), "lm_head.weight": (160, 64)})}, "has one head"),
    "two classifiers": ("G4b", {"head": "score", "edit": add(**{"classifier.weight": (3, 64)})}, "has one head"),
    "an old classifier's name today": (
        "G7",
        {"head": "classifier"},
        r"must be one matrix score\.weight .*seen (model\.)?classifier\.weight",
    ),
    "a head with one axis": ("G7", {"head": "score", "edit": add(**{"score.weight": (3,)})}, "must be one matrix"),
    "fewer labels than rows": ("G7", {"head": "score", "says": {"id2label": {"0": "a"}}}, "id2label has 1 names"),
    "labels that are no texts": ("G7", {"head": "score", "says": {"id2label": {"0": 1, "1": 2, "2": 3}}}, "id2label"),
    "another width": ("G4b", {"says": {"intermediate_size": 97}}, r"has shape \[96, 64\], config\.json implies \[97"),
    "another vocabulary": ("G1", {"says": {"vocab_size": 161}}, r"tensor model\.word_embed\.weight has shape"),
    "another width of the inner keys": (
        "G1",
        {"says": {"inner_values_retrieval_size": 4}},
        r"attn\.v_(keys|queries\.weight) has shape",
    ),
    "more inner values picked than there are": ("G1", {"says": {"num_value_per_head": 9}}, "at most num_inner_values"),
    "another number of experts": ("G4b", {"cdmoe": "M7", "says": {"num_experts": 16}}, "_embed.weight has shape"),
    "more picked than in reach": (
        "G4b",
        {"cdmoe": "M1", "says": {"num_cdmoe_experts_per_head": 17}},
        "num_cdmoe_experts_per_head is 17, but num_cdmoe_experts 20 gives only 4 x 4 = 16",
    ),
    "other heads": ("G4b", {"says": {"num_key_value_heads": 1}}, r"dt_proj\.weight has 32 columns, expected 16"),
    "today's layer in an old one": (
        "G4b",
        {"edit": mixed(pre_layernorm="input_layernorm", feed_forward="mlp")},
        "has a name of today among those of an older generation",
    ),
    "today's attention in the first": ("G1", {"edit": mixed(attn="self_attn")}, "has a name of today among"),
    "an old layer in today's": (
        "G7",
        {"edit": mixed(mlp="feed_forward")},
        r"3 missing .*, 3 unexpected .*feed_forward",
    ),
    "the third's layer in the fourth": (
        "G4b",
        {"edit": mixed(pre_layernorm="pre_sequence_layernorm")},
        r"1 missing .*1 unexpected \(model\.layers\.1\.pre_sequence_layernorm\.weight\)",
    ),
    "one tensor under two names": (
        "G7",
        {"edit": add(**{"model.layers.0.input_residual.weight": (64,)})},
        "input_residual(.weight)? and model.layers.0.input_residual(.weight)? are one and the same",
    ),
    "no layers": ("G7", {"edit": drop(".layers.")}, "no Doge generation"),
    "no norm to tell by": ("G7", {"edit": drop("input_layernorm")}, "those of no Doge generation"),
    "no gates": ("G7", {"edit": drop("gate_proj")}, r"2 missing \(model\.layers\.0\.mlp\.gate_proj\.weight"),
    "no residual weights": ("G4b", {"edit": drop("_residual")}, r"4 missing \(model\.layers\.0\.input_residual"),
    "no scores": ("G7", {"edit": drop("self_attn.A")}, r"2 missing \(model\.layers\.0\.self_attn\.A"),
    "no projection of scores": ("G4b", {"edit": drop("dt_proj")}, r"dt_proj\.weight has 0 columns"),
    "norms of queries lost in one layer": ("G7", {"edit": drop("layers.1.self_attn.q_norm")}, "1 missing"),
    "router with a bias today": (
        "G7",
        {"cdmoe": "M7", "edit": add(**{"model.layers.0.mlp.router_gate.bias": (8,)})},
        r"1 unexpected \(model\.layers\.0\.mlp\.router_gate\.bias\)",
    ),
    "scores of a third axis": (
        "G7",
        {"edit": add(**{f"model.layers.{layer}.self_attn.A": (2, 1) for layer in range(2)})},
        r"self_attn\.A has shape \[2, 1\]",
    ),
    "a router of no known form": (
        "G4b",
        {"cdmoe": "M7", "edit": drop("router_gate")},
        "mixture of experts is of no known form",
    ),
    "queries without a gate": ("G3a", {"cdmoe": "M1", "edit": drop("gate_proj")}, "a form of one day"),
    "M2": ("G4b", {"cdmoe": "M2"}, "M2 or M3: queries_proj with several heads.*not supported"),
    "M3": ("G4b", {"cdmoe": "M3"}, "M2 or M3: queries_proj with several heads.*not supported"),
    "M2 of two heads, keys like those of M4": (
        "G4b",
        {"cdmoe": "M2", "num_cdmoe_heads": 2},
        "M2 or M3",
    ),
    "M3 of one head, keys like those of M4": ("G4b", {"cdmoe": "M3", "num_cdmoe_heads": 1}, "M2 or M3"),
}


@pytest.mark.parametrize(("generation", "options", "pattern"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_one_line(tmp_path, generation, options, pattern):
    refused(older_doge(tmp_path, generation, **options), pattern)
