"""Ids and texts equal transformers', for a small tokenizer and for the published one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.errors import DogeExportError
from doge_export.runtime.streaming import open_detokenizer
from doge_export.runtime.tokenizer import MARGIN, UNPROVEN, Tokenizer

HARD_STRINGS = [
    "Hey how are you doing?",
    " leading and trailing ",
    "\n\n\r\n\t \x00\x07\x1b[31m\x7f\x85\u2028\u200b",
    "é versus e\u0301, a\u0300\u0316\u0324\u0331\u0360, \u0e01\u0e34\u0e49",
    "👩\u200d👩\u200d👧\u200d👦 🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f 👍🏽 🇵🇱 ☠\ufe0f",
    "北京欢迎你 こんにちは 안녕하세요 Привет مرحبا שלום नमस्ते",
    "\ufeff\ufffd\uffff\U0010ffff\ue000\U000f0000\U000f0001",
    "a" * 3000,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 40,
    "word " * 500,
    "<|end_of_text|>",
    "spelled <|end_of_text|> and <|start_header_id|>system<|end_header_id|>\n inside <|end_of_te",
    "<|begin_of_text|><|begin_of_text|> <tool> <🐕>",
    "it's IT'S we'Ll 1234567 3.14159 --- ... !!!\n\n??? {}[]",
    "\ud7ff\ue000 \u202e\u2066 \x80\x9f\xad \u0300 a\u0301\u0302\u0303"
    + "\u0301" * 40,  # marks on nothing and many on one
    "لا ﷽ ក្ខ ไก่ กำ นี้ हिन्दी க்ஷ தமிழ் 한글 \u1112\u1161\u11ab",
    "supercalifragilistic" * 500,
    "\U0001d573\U0001d58a \ufb01 ½ \u2167 \uff21\uff22",  # letters that normalisation would change
]


def auto_tokenizer(folder: Path):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


def folder_named(name: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{name}_folder")


@pytest.fixture(scope="module", params=["tokenizer", "doge_tokenizer"])
def pair(request: pytest.FixtureRequest):
    folder = folder_named(request.param, request)
    return Tokenizer.from_folder(folder), auto_tokenizer(folder)


@pytest.mark.parametrize("text", HARD_STRINGS, ids=range(len(HARD_STRINGS)))
def test_encode_and_decode_equal_transformers(pair, text):
    ours, theirs = pair
    for add_special_tokens in (True, False):
        ids = ours.encode(text, add_special_tokens=add_special_tokens)
        assert ids == theirs(text, add_special_tokens=add_special_tokens).input_ids
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_every_id_decodes_as_in_transformers(pair):
    """One by one: whole characters, pieces of some, and control tokens."""
    ours, theirs = pair
    assert ours.backend.get_vocab_size() == len(theirs)
    for index in range(len(theirs)):
        assert ours.decode([index]) == theirs.decode([index], clean_up_tokenization_spaces=False)
    assert ours.special_ids == {index for index, token in theirs.added_tokens_decoder.items() if token.special}


def test_random_ids_decode_as_in_transformers(pair):
    ours, theirs = pair
    generator = random.Random(1)
    for length in (2, 3, 20, 300):
        for _ in range(20):
            ids = [generator.randrange(len(theirs)) for _ in range(length)]
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_text_cut_to_a_length_equals_transformers(pair):
    ours, theirs = pair
    for text in HARD_STRINGS:
        for length in (1, 2, 7, 50):
            expected = theirs(text, truncation=True, max_length=length).input_ids
            assert ours.encode_cut(text, length) == expected
        assert ours.encode(text) == theirs(text).input_ids


@given(text=st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_encodes_as_in_transformers_and_comes_back(pair, text):
    ours, theirs = pair
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ids) == text


def test_special_ids_equal_transformers(pair):
    ours, theirs = pair
    assert ours.token_id("bos_token") == theirs.bos_token_id
    assert ours.token_id("eos_token") == theirs.eos_token_id
    assert ours.token_id("pad_token") == theirs.pad_token_id
    assert ours.token_id("cls_token") is None
    assert ours.special_tokens == theirs.special_tokens_map


@pytest.mark.parametrize("name", ["tokenizer", "doge_tokenizer"])
def test_streaming_any_ids_gives_the_full_decode(name, request):
    """Random ids are mostly broken UTF-8: the hardest case for holding back characters."""
    tokenizer = Tokenizer.from_folder(folder_named(name, request))
    generator = random.Random(0)
    size = tokenizer.backend.get_vocab_size()
    for length in (1, 2, 3, 50, 400):
        for _ in range(20):
            ids = [generator.randrange(size) for _ in range(length)]
            detokenizer = open_detokenizer(tokenizer)
            pieces = [detokenizer.push(token_id) for token_id in ids] + [detokenizer.flush()]
            assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_never_comes_in_halves(tokenizer):
    detokenizer = open_detokenizer(tokenizer)
    ids = tokenizer.encode("a👍🏽b", add_special_tokens=False)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert len(ids) > 4  # the emoji spans several tokens
    assert [piece for piece in pieces if piece] == ["a", "👍", "🏽", "b"]


def test_other_decoders_stream_too(tmp_path):
    """SentencePiece-like: a leading space that the decoder strips at the start only, and bytes as <0xAB> tokens."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b", "▁b", "!"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = Tokenizer(backend, special_tokens={}, chat_templates={})
    text = "a b👍🏽! b a a!"
    ids = tokenizer.encode(text)
    detokenizer = open_detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == text == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    unfinished = open_detokenizer(tokenizer)
    cut = ids[: ids.index(vocabulary["<0xF0>"]) + 2]
    assert "".join(unfinished.push(token_id) for token_id in cut) == "a b"
    assert "a b" + unfinished.flush() == tokenizer.decode(cut)


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos_token": False, "add_eos_token": True},  # ignored beside a tokenizer.json
        {"extra_special_tokens": ["<|new|>", "<|start_header_id|>"]},
        {"unk_token": "<|unknown|>"},
        {"split_special_tokens": True},
    ],
    ids=lambda change: "-".join(change),
)
def test_settings_of_tokenizer_config_are_followed(tokenizer_folder, tmp_path, change):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "changed")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    for text in ["hello <|new|> <|unknown|> <|end_of_text|> world", ""]:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True)


def test_special_tokens_map_is_read_where_the_config_names_none(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "legacy")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>", "lstrip": False}})
    )
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.token_id("eos_token") == theirs.eos_token_id == 1


def test_padding_and_truncation_of_the_file_do_not_apply(tokenizer_folder, tmp_path):
    import tokenizers

    folder = shutil.copytree(tokenizer_folder, tmp_path / "padded")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    text = "a small dog named Rex"
    assert Tokenizer.from_folder(folder).encode(text) == Tokenizer.from_folder(tokenizer_folder).encode(text)


def test_a_folder_without_tokenizer_has_none(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"version": "1.0"}'])
def test_a_broken_tokenizer_file_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DogeExportError, match=r"tokenizer\.json is not a tokenizer") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(DogeExportError, match="lone surrogate at character 3"):
        tokenizer.encode("abc\ud83d")


def test_prefix_space_tokenizer_equals_transformers(prefix_space_tokenizer_folder):
    """Such a tokenizer puts a space before every text, but must not before a piece of one."""
    folder = prefix_space_tokenizer_folder
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    for text in HARD_STRINGS:
        assert ours.encode(text) == theirs(text).input_ids
    messages = [{"role": "user", "content": "say <|end_of_text|>now"}]
    arguments = {"add_generation_prompt": True, "return_dict": False, "sanitize_control_tokens": True}
    assert ours.encode_chat(messages) == theirs.apply_chat_template(messages, **arguments)


DAMAGED_CONFIGS = [
    {"added_tokens_decoder": {"one": {"content": "x"}}},
    {"added_tokens_decoder": {"1": {}}},
    {"added_tokens_decoder": {"1": "x"}},
    {"added_tokens_decoder": {"1": {"content": 5}}},
    {"added_tokens_decoder": 3},
    {"added_tokens_decoder": None},
    {"eos_token": 5},
    {"eos_token": {"lstrip": False}},
    {"extra_special_tokens": 3},
    {"extra_special_tokens": [["x"]]},
    {"chat_template": 3},
    {"chat_template": ["x"]},
    {"chat_template": [{"name": "default"}]},
    {"chat_template": [{"name": "default", "template": 3}]},
    {"chat_control_tokens": 3},
]


@pytest.mark.parametrize("change", DAMAGED_CONFIGS, ids=str)
def test_a_damaged_tokenizer_config_is_one_line(tokenizer_folder, tmp_path, change):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "damaged")
    (folder / "chat_template.jinja").unlink(missing_ok=True)  # it would win over the one of the config
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DogeExportError, match=r"tokenizer_config\.json does not hold what it should") as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_special_tokens_map_is_one_line(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "damaged")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"lstrip": false}}')
    with pytest.raises(DogeExportError, match=r"special_tokens_map\.json does not hold what it should"):
        Tokenizer.from_folder(folder)


def test_a_chat_template_that_is_no_text_is_one_line(tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "damaged")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(DogeExportError, match=r"chat_template\.jinja does not hold what it should"):
        Tokenizer.from_folder(folder)


def test_no_token_stands_for_more_than_the_longest(tokenizer, tokenizer_folder, tmp_path):
    assert tokenizer.longest == max(map(len, tokenizer.backend.get_vocab()))
    for text in HARD_STRINGS:
        assert len(text) <= len(tokenizer.encode(text)) * tokenizer.longest
    for change in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ):
        folder = shutil.copytree(tokenizer_folder, tmp_path / str(len(list(tmp_path.iterdir()))))
        content = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(content | change))
        assert Tokenizer.from_folder(folder).longest == UNPROVEN * tokenizer.longest


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_beginning_of_a_long_text_has_the_ids_of_the_whole(tokenizer, length):
    for text in HARD_STRINGS:
        long = (text or "x") * (2 * (length + MARGIN) * tokenizer.longest // len(text or "x") + 1)
        assert tokenizer.encode_cut(long, length) == tokenizer.encode(long)[:length]
