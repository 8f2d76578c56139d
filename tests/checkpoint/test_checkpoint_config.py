"""config.json: what transformers reads is what we read; what cannot be a Doge is refused by name."""

import json

import pytest
from checkpoint_files import SIZES

from doge_export.checkpoint import Moe, Rope, open_checkpoint
from doge_export.checkpoint import config as reading
from doge_export.checkpoint.identify import Identity
from doge_export.errors import DogeExportError

CONFIG = {"model_type": "doge", **SIZES}
FACTORS = [1.0 + index / 8 for index in range(8)]  # head_dim 16


def parse_config(config):
    """The config of a checkpoint with today's tensors."""
    return reading.parse_config(config, Identity("G7", "M7" if config.get("is_moe") else None, "text-generation"), {})


def changed(changes):
    """The config after changes; `...` removes a key."""
    return {key: value for key, value in (CONFIG | changes).items() if value is not ...}


ROPES = {
    "nothing said": {},
    "theta of the config": {"rope_theta": 5000.0},
    "integer theta": {"rope_theta": 40000},
    "null": {"rope_scaling": None, "rope_theta": 1e5},
    "empty": {"rope_parameters": {}, "rope_scaling": {}},
    "new": {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 2}},
    "theta of the object first": {"rope_theta": 7e3, "rope_parameters": {"rope_theta": 3e4}},
    "old": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rope_theta": 1e4},
    "old key type": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "rope_type before type": {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 3.0}},
    "old before new": {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 9e3},
        "rope_theta": 6e3,
    },
    "as published": {
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 2048, "rope_type": "dynamic"},
        "rope_theta": 10000.0,
    },
    "untyped": {"rope_scaling": {"factor": 4.0}},
    "default with leftovers": {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn, all": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.5,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.9,
            "truncate": False,
        }
    },
    "yarn, factor from the lengths": {
        "rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}
    },
    "yarn, mscale": {"rope_scaling": {"type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5}},
    "original length of the config first": {
        "original_max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    },
    "original length missing": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
    "longrope": {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": FACTORS,
            "long_factor": [4 * factor for factor in FACTORS],
            "original_max_position_embeddings": 32,
        }
    },
    "longrope, all": {
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 5e5,
            "short_factor": FACTORS,
            "long_factor": FACTORS[::-1],
            "factor": 3.0,
            "attention_factor": 1.25,
        },
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "proportional": {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
    "proportional, share of the object first": {
        "partial_rotary_factor": 0.25,
        "rope_parameters": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
    },
    "proportional, share of the config": {
        "partial_rotary_factor": 0.25,
        "rope_parameters": {"rope_type": "proportional"},
    },
    "proportional, no turning": {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.0}},
}

# The sub-keys that the frequency function of each type reads.
READ = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor", "partial_rotary_factor"},
}


def rope_of_transformers(config):
    """The parameters as transformers' own rotary module ends up with them, reduced to those it reads."""
    from transformers import DogeConfig
    from transformers.models.doge.modeling_doge import DogeRotaryEmbedding

    module = DogeRotaryEmbedding(DogeConfig.from_dict(json.loads(json.dumps(config))))
    parameters = module.config.rope_parameters
    read = {"rope_theta"} | READ[parameters["rope_type"]]
    values = {key: parameters[key] for key in read if key in parameters}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if parameters["rope_type"] == "proportional":
        values.setdefault("factor", 1.0)
    return Rope(rope_type=parameters["rope_type"], **values)


@pytest.mark.parametrize("changes", ROPES.values(), ids=ROPES)
def test_rope_is_read_as_transformers_reads_it(changes):
    assert parse_config(CONFIG | changes).rope == rope_of_transformers(CONFIG | changes)


def test_every_type_of_transformers_is_covered():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert READ.keys() == ROPE_INIT_FUNCTIONS.keys() | {"default"}
    assert {parse_config(CONFIG | changes).rope.rope_type for changes in ROPES.values()} == READ.keys()


def test_missing_keys_take_the_defaults_of_transformers():
    from transformers import DogeConfig

    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    least = {key: CONFIG[key] for key in sizes} | {"model_type": "doge"}
    architecture, oracle = parse_config(least), DogeConfig.from_dict(least)
    for key in (
        *("num_key_value_heads", "max_position_embeddings", "keep_window_size", "rms_norm_eps"),
        *("attention_bias", "mlp_bias", "tie_word_embeddings"),
    ):
        assert getattr(architecture, key) == getattr(oracle, key), key
    assert architecture.moe is None
    assert architecture.rope == Rope("default", oracle.rope_parameters["rope_theta"])
    large = parse_config(least | {"is_moe": True})
    assert large.moe == Moe(oracle.num_experts, oracle.num_experts_per_tok)


@pytest.mark.parametrize(
    ("changes", "head_dim", "kv_heads"),
    [
        ({}, 16, 2),
        ({"num_key_value_heads": None}, 16, 4),
        ({"num_key_value_heads": ...}, 16, 4),
        ({"head_dim": 128}, 128, 2),
        ({"head_dim": 24, "hidden_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1}, 24, 1),
    ],
)
def test_heads(changes, head_dim, kv_heads):
    architecture = parse_config(changed(changes))
    assert (architecture.head_dim, architecture.num_key_value_heads) == (head_dim, kv_heads)


def test_unknown_keys_are_left_alone():
    extra = {
        "dtype": "bfloat16",
        "transformers_version": "4.99",
        "auto_map": {"AutoConfig": "x.Y"},
        "id2label": {"0": "a"},
    }
    assert parse_config(CONFIG | extra) == parse_config(CONFIG)


def test_swish_is_silu():
    assert parse_config(CONFIG | {"hidden_act": "swish"}) == parse_config(CONFIG)


NOT_AN_INTEGER = [0, -1, 2.0, "2", True, None, [2], 2**31, float("nan")]
NOT_A_NUMBER = [float("nan"), float("inf"), float("-inf"), "1", None, True, [1.0], 10**400]

REFUSED = [
    ({"model_type": ...}, r'model_type is missing, expected "doge"'),
    ({"model_type": "llama"}, r'model_type is "llama", expected "doge"'),
    ({"model_type": None}, r"model_type is null"),
    ({"model_type": ["doge"]}, r"model_type is \[.doge.\]"),
    ({"model_type": "doge3"}, r'model_type is "doge3", expected "doge"'),
    ({"sliding_window": 4096}, r"sliding_window is 4096: sliding-window attention is not supported"),
    ({"sliding_window": 0}, r"sliding_window is 0"),
    ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config is .*quantised weights"),
    ({"per_layer_config": {"0": {"hidden_size": 3}}}, r"per_layer_config"),
    *[
        ({key: ...}, rf"config\.json has no {key}")
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ],
    *[
        ({key: value}, rf"config\.json: {key} is .*, expected an integer")
        for key in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("max_position_embeddings", "keep_window_size", "window_size", "head_dim"),
            *("num_inner_values", "num_inner_value_heads", "num_value_per_head"),
        )
        for value in NOT_AN_INTEGER
    ],
    *[({"num_key_value_heads": value}, r"num_key_value_heads is") for value in NOT_AN_INTEGER if value is not None],
    *[
        ({"rms_norm_eps": value}, r"rms_norm_eps is .*, expected a finite number")
        for value in [*NOT_A_NUMBER, 0, -1e-6]
    ],
    *[
        ({key: value}, rf"{key} is .*, expected true or false")
        for key in ("attention_bias", "mlp_bias", "hidden_bias", "tie_word_embeddings", "is_moe", "is_causal")
        for value in (0, 1, "true", None)
    ],
    ({"num_hidden_layers": 10**6}, r"num_hidden_layers is 1000000, expected an integer 1\.\.10000"),
    ({"num_attention_heads": 5, "num_key_value_heads": 1}, r"hidden_size is 64, expected a multiple of .* \(5\)"),
    ({"num_key_value_heads": 3}, r"num_key_value_heads is 3, expected a divisor of num_attention_heads \(4\)"),
    ({"num_key_value_heads": 8}, r"num_key_value_heads is 8, expected a divisor of num_attention_heads \(4\)"),
    ({"head_dim": 15}, r"head_dim is 15, expected an even number"),
    ({"hidden_size": 60}, r"head_dim is 15 \(hidden_size 60 / num_attention_heads 4\), expected an even number"),
    ({"hidden_act": "gelu"}, r'hidden_act is "gelu", expected "silu"'),
    ({"hidden_act": None}, r"hidden_act is null"),
    ({"is_moe": True, "num_experts": 0}, r"num_experts is 0"),
    ({"is_moe": True, "num_experts_per_tok": 0}, r"num_experts_per_tok is 0"),
    ({"is_moe": True, "num_experts": 15, "num_experts_per_tok": 10}, r"num_experts 15 gives only 3 x 3 = 9 experts"),
    ({"is_moe": True, "norm_topk_prob": "no"}, r"norm_topk_prob is \"no\""),
    ({"is_moe": True, "num_cdmoe_experts": 15, "num_cdmoe_experts_per_head": 10}, r"num_cdmoe_experts 15 gives only"),
    *[({"dynamic_mask_ratio": value}, r"dynamic_mask_ratio is") for value in [*NOT_A_NUMBER, -0.1, 1.5]],
    *[({"pad_token_id": value}, r"pad_token_id is") for value in (2.0, "2", [2], True)],
]


@pytest.mark.parametrize(("changes", "pattern"), REFUSED)
def test_refused_by_itself(changes, pattern):
    """These two calls come before any tensor is looked at."""
    with pytest.raises(DogeExportError, match=pattern) as caught:
        reading.parse_rotation(changed(changes), reading.parse_sizes(changed(changes)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"hidden_size": "64"}, {"keep_window_size": 0}, {"rope_scaling": [1]}])
def test_refused_before_there_are_weights(tmp_path, changes):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(DogeExportError, match=next(iter(changes))):
        open_checkpoint(tmp_path)


LONGROPE = {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

REFUSED_ROPES = [
    (
        {"rope_type": "ntk"},
        r'rope_type is "ntk", expected one of default, linear, dynamic, yarn, longrope, llama3, prop',
    ),
    ({"type": "su", "factor": 2.0}, r'rope_type is "su", expected one of'),
    ({"rope_type": "axial"}, r'rope_type is "axial"'),
    ({"rope_type": None}, r"rope_type is null"),
    ({"rope_type": ["linear"]}, r"rope_type is \["),
    ("linear", r'rope_parameters is "linear", expected an object'),
    ([1], r"rope_parameters is \[1\], expected an object"),
    ({"full_attention": {"rope_type": "default"}}, r"nested \(full_attention\)"),
    *[({"rope_theta": value}, r"rope_theta is .*, expected a finite number") for value in [*NOT_A_NUMBER, 0, -1.0, 1]],
    *[({"rope_type": name}, r"rope_parameters has no factor") for name in ("linear", "dynamic", "yarn")],
    *[
        ({"rope_type": name, "factor": value}, r"factor is .*, expected a finite number")
        for name in ("linear", "dynamic", "proportional")
        for value in [*NOT_A_NUMBER, 0, -2.0]
    ],
    *[({"rope_type": "yarn", "factor": value}, r"factor is") for value in (0, -1.0, "4", True)],
    *[
        ({"rope_type": "yarn", "factor": 4.0, key: value}, rf"{key} is")
        for key in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        for value in (-1.0, "1", float("nan"))
    ],
    ({"rope_type": "yarn", "factor": 4.0, "truncate": None}, r"truncate is null, expected true or false"),
    *[
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": value}, r"original_max_position")
        for value in (None, 0, 2048.0)
    ],
    ({"rope_type": "longrope"}, r"has no short_factor"),
    ({"rope_type": "longrope", "short_factor": FACTORS}, r"has no long_factor"),
    (LONGROPE | {"short_factor": FACTORS[:7]}, r"short_factor has 7 values, expected a list of 8 numbers"),
    (LONGROPE | {"long_factor": 2.0}, r"long_factor has 2\.0, expected a list of 8 numbers"),
    (LONGROPE | {"long_factor": [*FACTORS[:7], 0]}, r"long_factor\[7\] is 0, expected a finite number above 0"),
    (LONGROPE | {"long_factor": [*FACTORS[:7], "x"]}, r"long_factor\[7\] is \"x\""),
    (LONGROPE | {"original_max_position_embeddings": 1}, r"original_max_position_embeddings is 1"),
    *[({key: value for key, value in LLAMA3.items() if key != lost}, rf"has no {lost}") for lost in list(LLAMA3)[1:]],
    (LLAMA3 | {"high_freq_factor": 1.0}, r"high_freq_factor is 1\.0, expected more than low_freq_factor \(1\)"),
    (LLAMA3 | {"low_freq_factor": 0}, r"low_freq_factor is 0"),
    *[
        ({"rope_type": name, "factor": 2.0, "partial_rotary_factor": 0.5}, rf"partial_rotary_factor is 0\.5, .* {name}")
        for name in ("default", "linear", "dynamic", "yarn")
    ],
    ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, r"partial_rotary_factor is 1\.5, expected a share"),
    ({"rope_type": "proportional", "partial_rotary_factor": -0.5}, r"partial_rotary_factor is -0\.5"),
]


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(("rope", "pattern"), REFUSED_ROPES)
def test_refused_rope(rope, pattern, key):
    with pytest.raises(DogeExportError, match=pattern.replace("rope_parameters", key)) as caught:
        parse_config(CONFIG | {key: rope})
    assert "\n" not in str(caught.value)


def test_refused_rope_of_the_config_itself():
    for changes in ({"rope_theta": None}, {"rope_theta": -1}, {"partial_rotary_factor": 0.5}):
        with pytest.raises(DogeExportError, match=next(iter(changes))):
            parse_config(CONFIG | changes)
    with pytest.raises(DogeExportError, match="dynamic needs a head_dim of at least 4, seen 2"):
        parse_config(CONFIG | {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}})


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"model_type": "doge",}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"rms_norm_eps": NaN}', "NaN is not a JSON number"),
        (b'{"rope_theta": Infinity}', "Infinity is not a JSON number"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", r"holds a JSON list, expected an object"),
        (b'"doge"', r"holds a JSON str, expected an object"),
    ],
)
def test_broken_file(copy, content, pattern):
    (copy / "config.json").write_bytes(content)
    with pytest.raises(DogeExportError, match=pattern) as caught:
        open_checkpoint(copy)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_generation_config_is_named(copy):
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(DogeExportError, match=r"generation_config\.json is not valid JSON"):
        open_checkpoint(copy)
