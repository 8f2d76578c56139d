"""Tokenizers that are missing, in parts, or larger than the model."""

from __future__ import annotations

import json

import pytest
import tokenizers

from doge_export.checkpoint import open_checkpoint

WORDS = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}


@pytest.fixture
def with_vocabulary(copy):
    (copy / "vocab.json").write_text(json.dumps(WORDS))
    (copy / "merges.txt").write_text("#version: 0.2\na b\n")
    return copy


def test_a_missing_tokenizer_is_told(copy):
    checkpoint = open_checkpoint(copy)
    assert checkpoint.notes[0].startswith("tokenizer.json is missing: the exported folder will take token ids only")
    (copy / "tokenizer_config.json").write_text("{}")
    (copy / "vocab.json").write_text("{}")
    assert "(there is tokenizer_config.json, vocab.json)" in open_checkpoint(copy).notes[0]


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "GPT2Tokenizer"}, {"model_max_length": 5}])
def test_a_tokenizer_is_made_from_vocabulary_and_merges(config, with_vocabulary):
    if config is not None:
        (with_vocabulary / "tokenizer_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(with_vocabulary)
    assert "is made by transformers from vocab.json and merges.txt" in checkpoint.notes[0]
    made = tokenizers.Tokenizer.from_str(checkpoint.tokenizer.made["tokenizer.json"].decode())
    assert made.encode("abab").ids == [2, 2]


@pytest.mark.parametrize("damage", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_vocabulary_that_makes_no_tokenizer_is_told(damage, with_vocabulary):
    if damage == "tokenizer_config.json":
        named = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
        (with_vocabulary / damage).write_text(json.dumps(named))
        (with_vocabulary / "theirs.py").write_text("raise SystemExit('code of the checkpoint was run')")
    else:
        (with_vocabulary / damage).write_bytes(b"\xff{")
    checkpoint = open_checkpoint(with_vocabulary)
    assert checkpoint.tokenizer.made == {} or damage == "tokenizer_config.json"
    assert "tokenizer.json" in checkpoint.notes[0]


def test_the_made_tokenizer_goes_into_the_export(with_vocabulary, tmp_path):
    from doge_export import export, load

    export(with_vocabulary, tmp_path / "out", validate=False, max_length=16)
    assert load(tmp_path / "out").tokenizer.encode("abab") == [2, 2]


def test_more_ids_than_rows_are_told(copy):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(n): n for n in range(96)}, unk_token="0"))
    backend.save(str(copy / "tokenizer.json"))
    assert open_checkpoint(copy).notes == ()
    backend.add_tokens(["one more"])
    backend.save(str(copy / "tokenizer.json"))
    assert "ids up to 96, the model 96 rows" in open_checkpoint(copy).notes[0]
