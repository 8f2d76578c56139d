"""Texts encoded in stretches: the ids and places that encoding them whole gives, and a bound where none can be cut."""

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers as pre

from doge_export.assets import bundled
from doge_export.errors import DogeExportError
from doge_export.runtime import long_text
from doge_export.runtime.long_text import encoded_stretches
from doge_export.runtime.tokenizer import Tokenizer

PIECES = ["Rex was happy", " ", "  ", "\n", "\r\n", "\t", "1234567", ".", "...\n\n", "it's", "très", "\u00a0", "漢字",
          "👩‍🚀", "<|end_of_text|>", "<|begin_of_text|>", "\ufffd", "x" * 30, "    \n" * 5, "don't", "-",
          "' '"]  # fmt: skip


def text_of(seed, count=150):
    """Words, white space, numbers, symbols and special tokens in any order; now and then a long run of one of them."""
    random = np.random.default_rng(seed)
    return "".join(PIECES[i] * int(random.choice([1, 1, 1, 3, 60])) for i in random.integers(len(PIECES), size=count))


def joined(tokenizer, text):
    ids, offsets = zip(*encoded_stretches(tokenizer, text), strict=True)
    return np.concatenate(ids).tolist(), [tuple(pair) for pair in np.concatenate(offsets).tolist()], len(ids)


@pytest.mark.parametrize("seeds", [2, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stretch", [100, 997])
def test_the_ids_are_those_of_the_whole_text(seeds, stretch, monkeypatch):
    monkeypatch.setattr(long_text, "STRETCH", stretch)
    tokenizer = Tokenizer.from_folder(bundled("doge-nano"))
    for seed in range(seeds):
        text = text_of(seed)
        whole = tokenizer.encoding(text, add_special_tokens=False)
        ids, offsets, parts = joined(tokenizer, text)
        assert ids == whole.ids and offsets == whole.offsets
        assert parts > 3


def steps(*first, use_regex=False):
    """A pre-tokenizer of some splits and the bytes."""
    splits = [pre.Split(tokenizers.Regex(part), "isolated") if isinstance(part, str) else part for part in first]
    return pre.Sequence([*splits, pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


WORDS = r" ?\p{L}+| ?\p{N}+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    "a step behind the bytes, as Falcon's": pre.Sequence([pre.ByteLevel(add_prefix_space=False), pre.Digits()]),
    "words of a step in the middle of another's": steps(r"\w+ \w+", WORDS),
    "the beginning of a line": steps(r"^\s+", use_regex=True),
}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_whatever_splits_the_words(name, monkeypatch):
    monkeypatch.setattr(long_text, "STRETCH", 100)
    tokenizer = Tokenizer.from_folder(bundled("doge-nano"))
    tokenizer.backend.pre_tokenizer = PRE_TOKENIZERS[name]
    text = text_of(1) + "漢²字" * 99 + "1234567" * 100 + text_of(2)
    whole = tokenizer.encoding(text, add_special_tokens=False)
    assert joined(tokenizer, text)[:2] == (whole.ids, whole.offsets)


def test_places_are_those_of_the_whole_text_where_a_space_before_it_is_left_out(monkeypatch):
    monkeypatch.setattr(long_text, "STRETCH", 100)
    tokenizer = Tokenizer.from_folder(bundled("doge-nano"))
    tokenizer.backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    whole = tokenizer.encoding(" Rex was happy" * 99, add_special_tokens=False)
    assert joined(tokenizer, " Rex was happy" * 99)[:2] == (whole.ids, whole.offsets)


def test_a_text_that_cannot_be_cut_is_encoded_whole_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(long_text, "STRETCH", 50)
    monkeypatch.setattr(long_text, "WHOLE", 900)
    tokenizer = Tokenizer.from_folder(bundled("doge-nano"))
    with pytest.raises(DogeExportError, match=r"1000 characters and cannot be encoded in parts.* at most 900 at once"):
        list(encoded_stretches(tokenizer, "x" * 1000))  # one word
    tokenizer.backend.normalizer = tokenizers.normalizers.Lowercase()
    assert len(list(encoded_stretches(tokenizer, "a b " * 200))) == 1
    with pytest.raises(DogeExportError, match="cannot be encoded in parts"):
        list(encoded_stretches(tokenizer, "a b " * 250))
