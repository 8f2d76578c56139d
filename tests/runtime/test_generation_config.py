"""Defaults of the folder, overridden by the caller, checked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from doge_export.errors import DogeExportError
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.generation_fields import FIELDS, unsupported
from doge_export.runtime.logits_processors import processors_for


def folder_with(tmp_path, generation=None, config=None):
    for name, values in {"generation_config.json": generation, "config.json": config}.items():
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    return GenerationConfig.from_folder(tmp_path)


def test_without_files_it_is_greedy_up_to_the_models_length(tmp_path):
    assert GenerationConfig.from_folder(tmp_path) == GenerationConfig()
    assert not GenerationConfig().do_sample and GenerationConfig().max_new_tokens is None


def test_defaults_equal_transformers():
    import transformers

    theirs = transformers.GenerationConfig._get_default_generation_params()
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        assert getattr(GenerationConfig(), name) == theirs[name]


def test_the_file_gives_the_defaults(tmp_path):
    values = {"do_sample": True, "temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": None, "max_new_tokens": 7}
    found = folder_with(tmp_path, {**values, "eos_token_id": [1, 5], "bos_token_id": 0, "transformers_version": "5"})
    assert found == GenerationConfig(True, 0.8, 5, 0.9, max_new_tokens=7, eos_token_ids=(1, 5))


def test_eos_falls_back_on_the_model_config(tmp_path):
    assert folder_with(tmp_path, {"do_sample": False}, {"eos_token_id": 2}).eos_token_ids == (2,)
    assert folder_with(tmp_path, {"eos_token_id": 3}, {"eos_token_id": 2}).eos_token_ids == (3,)


@pytest.mark.parametrize("name, value", [("temperature", 0.5), ("top_k", 3), ("top_p", 0.5), ("min_p", 0.1)])
def test_asking_for_randomness_is_asking_for_sampling(name, value):
    assert GenerationConfig().override(**{name: value}).do_sample
    assert not GenerationConfig().override(**{name: value, "do_sample": False}).do_sample
    assert not GenerationConfig().override(repetition_penalty=1.5).do_sample


def test_temperature_zero_in_the_folder_is_greedy(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.0, "do_sample": true}', encoding="utf-8")
    assert GenerationConfig.from_folder(tmp_path) == GenerationConfig()


def test_temperature_zero_is_greedy():
    assert not GenerationConfig(do_sample=True).override(temperature=0).do_sample
    assert not GenerationConfig().override(temperature=0.0, top_k=5, do_sample=True).do_sample


def test_none_keeps_the_default_and_numpy_numbers_are_numbers():
    base = GenerationConfig(top_k=7)
    assert base.override(top_k=None, temperature=None) == base
    assert base.override(top_k=np.int64(3), temperature=np.float32(0.5)).top_k == 3
    assert base.override(eos_token_id=np.int64(3)).eos_token_ids == (3,)


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", False),
        ("top_k", -2),
        ("top_k", 50.0),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("eos_token_id", "1"),
        ("eos_token_id", [1, -1]),
        ("eos_token_id", np.array([1.5])),
        ("eos_token_id", np.array([[1]])),
        ("eos_token_id", np.array([True])),
        ("do_sample", 1),
    ],
)
def test_values_out_of_range_are_one_line(name, value):
    with pytest.raises(DogeExportError, match=f"{name} is .*expected"):
        GenerationConfig().override(**{name: value})


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(DogeExportError, match=r"generation_config\.json is not valid JSON"):
        GenerationConfig.from_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(DogeExportError, match="expected an object"):
        GenerationConfig.from_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(DogeExportError, match=r"generation_config\.json: top_p is 7, expected"):
        GenerationConfig.from_folder(tmp_path)


def test_every_field_that_transformers_knows_has_a_decision():
    import transformers

    known = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert known <= FIELDS.keys()
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert unsupported(defaults) == []
    assert unsupported(vars(transformers.GenerationConfig())) == []
    for name, value in defaults.items():  # what changes nothing there is taken here, and changes nothing
        if value is not None and name not in ("max_length", "top_k", "do_sample"):
            config = GenerationConfig().override(**{name: value, "do_sample": False})
            assert processors_for(config, np.arange(3)) == []


WRONG = {
    "top_k": [50.0, -2, "50", True, [5]],
    "eos_token_id": [-2, [1, -1], "1", 1.0, 2**31, 10**400],
    "temperature": [-1, "hot", 10**400],
    "min_new_tokens": [-2, 1.0],
    "min_length": [None, -3][1:],
    "no_repeat_ngram_size": [-2, 2.0],
    "encoder_no_repeat_ngram_size": ["3"],
    "repetition_penalty": [0, -1, 10**400, 1e-300, 1e300],
    "encoder_repetition_penalty": [0],
    "suppress_tokens": ["x", [1.0], [[1]], [-2]],
    "begin_suppress_tokens": [[None]],
    "bad_words_ids": [5, [5], [[]], [[-1]], [["a"]], "ab"],
    "sequence_bias": [5, [5], [[[1], "x"]], [[[], 1.0]], [[[1]]], [[[-1], 1.0]], [[[1], 1e300]], {"1": 2.0}],
    "forced_bos_token_id": [[1], "a", -2],
    "forced_eos_token_id": ["a", -2, [1.5]],
    "exponential_decay_length_penalty": [5, [1], [1.5, 1.0], [1, "x"], [1, 0], [-1, 1.1]],
    "top_h": [0, 1.1],
    "typical_p": [0, -1, 1.5],
    "epsilon_cutoff": [-0.1, 2],
    "eta_cutoff": [-0.1, 2],
    "remove_invalid_values": [1],
    "stop_strings": [5, [""], [5]],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_line_from_a_file_and_from_a_caller(tmp_path, name):
    # Numbers that no float holds are refused by the reader of JSON.
    seen = rf"generation_config\.json(: {name} is .*, expected| is not valid JSON \(a number of 401 digits\))"
    for value in WRONG[name]:
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(DogeExportError, match=seen) as caught:
            GenerationConfig.from_folder(tmp_path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
        with pytest.raises(DogeExportError, match=f"^{name} is .*, expected"):
            GenerationConfig().override(**{name: value})


def test_the_file_that_holds_a_wrong_value_is_named(tmp_path):
    with pytest.raises(DogeExportError, match=r"[/\\]config\.json: eos_token_id is 'x'"):
        folder_with(tmp_path, {}, {"eos_token_id": "x"})


def test_minus_one_means_what_others_mean_by_it(tmp_path):
    minus = dict.fromkeys(("top_k", "max_new_tokens", "max_length", "min_length", "min_new_tokens"), -1)
    minus |= dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "forced_bos_token_id"), -1)
    minus |= {"eos_token_id": -1, "forced_eos_token_id": -1, "suppress_tokens": [-1]}
    found = folder_with(tmp_path, minus, {"eos_token_id": 2})
    assert found == GenerationConfig(top_k=0)
    assert found.names_eos  # as none: neither config.json nor the tokenizer ends an answer
    assert GenerationConfig().override(do_sample=False, **minus) == GenerationConfig(top_k=0)


def test_what_is_not_supported_is_named(tmp_path):
    asked = {
        "num_beams": 4,
        "guidance_scale": 1.5,
        "watermarking_config": {"ratio": 0.3},
        "penalty_alpha": 0.6,
    }
    found = folder_with(tmp_path, {**asked, "num_beam_groups": 1, "use_cache": False, "pad_token_id": 7, "custom": 1})
    assert found == GenerationConfig()
    assert [note.split(": ")[1].split(" is ")[0] for note in found.notes] == list(asked)
    assert all("generation_config.json" in note and note.endswith("it is ignored") for note in found.notes)
    for name, value in asked.items():
        with pytest.raises(DogeExportError, match=f"^{name} is .*runtime is without"):
            GenerationConfig().override(**{name: value})
    assert GenerationConfig().override(num_beams=1, use_cache=True) == GenerationConfig()


def test_ids_that_the_model_does_not_have(tmp_path):
    for name, value in {
        "bad_words_ids": [[1, 9]],
        "sequence_bias": [[[9], 1.0]],
        "forced_bos_token_id": 9,
        "forced_eos_token_id": [1, 9],
    }.items():
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(DogeExportError, match=rf"generation_config\.json: {name} has token id 9"):
            GenerationConfig.from_folder(tmp_path, vocab_size=9)
        assert GenerationConfig.from_folder(tmp_path, vocab_size=10)
    GenerationConfig(suppress_tokens=(99,), eos_token_ids=(99,)).check_ids(9)  # transformers takes these


def test_a_bias_may_be_a_dict_as_in_transformers():
    bias = {(1, 2): -float("inf"), (3,): 2}
    assert GenerationConfig().override(sequence_bias=bias).sequence_bias == (((1, 2), -np.inf), ((3,), 2.0))


def test_a_misspelt_setting_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        GenerationConfig().override(temprature=1)
