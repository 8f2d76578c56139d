"""Defaults of the folder, overridden by the caller, checked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from doge_export.errors import DogeExportError
from doge_export.runtime.generation_config import GenerationConfig


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
        ("top_k", -1),
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


def test_a_misspelt_setting_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        GenerationConfig().override(temprature=1)
