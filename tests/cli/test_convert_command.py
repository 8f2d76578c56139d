"""`doge-export convert`."""

import json

import pytest
from older_doge import older_doge


@pytest.fixture
def second(tmp_path):
    return older_doge(tmp_path / "model", "G6b")


def test_text(run, second, tmp_path):
    out = tmp_path / "my out"
    result = run("convert", second, out)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{out}  ") and line.endswith("G6b as transformers' Doge, float32")
    assert "reading" in result.stderr
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]


def test_json(run, second, tmp_path):
    result = run("convert", second, tmp_path / "out", "--json", "-q", "--task", "feature-extraction")
    assert result.exit_code == 0
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    del facts["bytes"]
    expected = {"generation": "G6b", "task": "feature-extraction", "dtype": "float32", "tensors": 32}
    assert facts == expected | {"folder": str(tmp_path / "out")}


def test_a_note_is_told(run, tmp_path):
    model = older_doge(tmp_path / "model", "G6a", num_key_value_heads=4)
    result = run("convert", model, tmp_path / "out")
    assert result.exit_code == 0
    assert "note: the files do not tell G6b from G6a" in result.stderr
    told = run("convert", model, tmp_path / "other", "--generation", "G6a").stderr
    assert "G6b" not in told and told.count("note:") == 1  # that there is no tokenizer


def test_refused_in_one_line(run, tmp_path):
    model = older_doge(tmp_path / "model", "G4b")
    result = run("convert", model, tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "transformers' Doge cannot express: it has no norm on queries and keys" in result.stderr
    assert not (tmp_path / "out").exists()


def test_replacing(run, second, tmp_path):
    assert run("convert", second, tmp_path / "out").exit_code == 0
    refused = run("convert", second, tmp_path / "out")
    assert refused.exit_code == 2 and "is not empty" in refused.stderr
    assert run("convert", second, tmp_path / "out", "--force").exit_code == 0
