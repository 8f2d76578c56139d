"""Generation on a decoder written in numpy: lengths, endings, batches, streams, logits, and every refusal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from doge_export.errors import DogeExportError
from doge_export.runtime import Generation, load
from doge_export.runtime.context import PREFILL_CHUNK
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.streaming import StopStrings

PROMPT = [0, 17, 33, 250, 41]


def greedy_by_hand(decoder, prompt, count):
    """The definition: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        decoder.reset()
        ids.append(int(decoder.forward(np.array([ids], np.int64))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_its_definition(make_session, numpy_decoder):
    session = make_session()
    generation = session.generate(PROMPT, max_new_tokens=40)
    assert isinstance(generation, Generation)
    assert generation.token_ids == greedy_by_hand(numpy_decoder(session.decoder.vocab_size), PROMPT, 40)
    assert generation.prompt_token_ids == PROMPT
    assert generation.finish_reason == "length"
    assert str(generation) == generation.text == session.tokenizer.decode(generation.token_ids, True)


def test_every_token_is_read_once(make_session):
    session = make_session()
    session.generate(PROMPT, max_new_tokens=4)
    assert session.decoder.runs == [(1, 5), (1, 1), (1, 1), (1, 1)]  # the last token is nobody's context


def test_long_prompts_are_read_in_chunks(make_session):
    session = make_session(max_length=PREFILL_CHUNK + 100)
    prompt = np.random.default_rng(0).integers(0, session.decoder.vocab_size, PREFILL_CHUNK + 30)
    chunked = session.generate(prompt, max_new_tokens=5)
    assert session.decoder.runs[:2] == [(1, PREFILL_CHUNK), (1, 30)]
    session.decoder.reset()
    logits = session.decoder.forward(prompt[None])
    assert chunked.token_ids[0] == logits[0, -1].argmax()


def test_a_left_padded_batch_gives_each_row_its_own_answer(make_session):
    session = make_session()
    prompts = [PROMPT, [7], [9, 8, 7, 6, 5, 4, 3, 2]]
    together = session.generate(prompts, max_new_tokens=12)
    assert [row.token_ids for row in together] == [session.generate(p, max_new_tokens=12).token_ids for p in prompts]
    assert [row.prompt_token_ids for row in together] == prompts


def test_sampling_a_row_does_not_depend_on_the_other_rows(make_session):
    session = make_session()
    settings = {"max_new_tokens": 12, "temperature": 1.5, "seed": 5}
    alone = session.generate(PROMPT, **settings)
    first, second = session.generate([PROMPT, PROMPT], **settings)
    assert first == alone
    assert second.token_ids != first.token_ids
    assert session.generate(PROMPT, **{**settings, "seed": 6}).token_ids != alone.token_ids


def test_any_eos_token_ends_a_row_and_is_kept_in_its_ids(make_session):
    session = make_session()
    free = session.generate(PROMPT, max_new_tokens=30).token_ids
    end = next(index for index in range(3, 30) if free[index] not in free[:index])
    ended = session.generate(PROMPT, max_new_tokens=30, eos_token_id=[399, free[end]])
    assert ended.token_ids == free[: end + 1]
    assert ended.finish_reason == "eos"


def test_eos_token_ids_may_be_arrays(make_session):
    session = make_session()
    free = session.generate(PROMPT, max_new_tokens=30).token_ids
    expected = session.generate(PROMPT, max_new_tokens=30, eos_token_id=[399, free[4]])
    assert expected.finish_reason == "eos"
    assert session.generate(PROMPT, max_new_tokens=30, eos_token_id=np.array([399, free[4]])) == expected
    assert session.generate(PROMPT, max_new_tokens=30, eos_token_id=np.int32(free[4])) == expected
    assert session.generate(PROMPT, max_new_tokens=30, eos_token_id=np.array(free[4])) == expected


def test_rows_end_by_themselves(make_session):
    session = make_session()
    prompts = [PROMPT, [7]]
    free = session.generate(prompts, max_new_tokens=20)
    eos = next(token for token in free[0].token_ids[2:] if token not in free[1].token_ids)
    first, second = session.generate(prompts, max_new_tokens=20, eos_token_id=eos)
    assert first.finish_reason == "eos" and len(first.token_ids) < 20
    assert second == free[1]


def test_eos_comes_from_the_folder_then_from_the_tokenizer(make_session):
    assert make_session({"eos_token_id": [5, 6]}).generation_config.eos_token_ids == (5, 6)
    assert make_session().generation_config.eos_token_ids == (1,)
    assert make_session(with_tokenizer=False).generation_config.eos_token_ids == ()


def test_generation_stops_where_the_model_ends(make_session):
    session = make_session(max_length=20)
    generation = session.generate(PROMPT, eos_token_id=[])
    assert len(generation.token_ids) == 15
    assert generation.finish_reason == "length"
    assert session.generate(PROMPT, eos_token_id=[], max_new_tokens=99) == generation
    assert len(session.generate(list(range(19)), eos_token_id=[]).token_ids) == 1


def test_lengths_of_the_folder_are_defaults(make_session):
    assert len(make_session({"max_length": 12}).generate(PROMPT, eos_token_id=[]).token_ids) == 7
    session = make_session({"max_new_tokens": 3, "max_length": 6})
    assert len(session.generate(PROMPT, eos_token_id=[]).token_ids) == 3
    assert len(session.generate(PROMPT, eos_token_id=[], max_new_tokens=9).token_ids) == 9


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "seed": 3}, {"repetition_penalty": 1.4}], ids=str)
def test_the_stream_put_together_is_the_text(make_session, settings):
    session = make_session()
    for prompt in (PROMPT, "Once upon a time", [{"role": "user", "content": "hello"}]):
        expected = session.generate(prompt, max_new_tokens=60, **settings)
        stream = session.stream(prompt, max_new_tokens=60, **settings)
        pieces = list(stream)
        assert "".join(pieces) == expected.text and all(pieces)
        assert stream.generation == expected


def test_a_stream_knows_its_answer_so_far(make_session):
    stream = make_session().stream("Once upon", max_new_tokens=60)
    text = next(stream) + next(stream)
    assert stream.generation.text == text
    assert stream.generation.finish_reason is None


def test_stop_strings_end_the_text_before_them(make_session):
    session = make_session()
    text = session.generate("Once upon a time", max_new_tokens=40).text
    for start in range(5, 25):
        stop = text[start : start + 6]
        for stops in (stop, [stop, "never found"]):
            generation = session.generate("Once upon a time", max_new_tokens=40, stop=stops)
            assert generation.text == text[: text.index(stop)]
            assert generation.finish_reason == "stop"
            assert "".join(session.stream("Once upon a time", max_new_tokens=40, stop=stops)) == generation.text
    kept = session.generate("Once upon a time", max_new_tokens=40, stop=text[-3:] + "never found")
    assert kept.text == text  # an ending that began like a stop string is let go at the end
    assert kept.finish_reason == "length"


def test_a_special_token_as_stop_string_ends_like_an_eos_token(make_session):
    """Special tokens never show in the text, so a stop string could not find one there."""
    session = make_session()
    settings = {"max_new_tokens": 120, "temperature": 50.0, "seed": 2, "eos_token_id": []}
    free = session.generate("Once", **settings).token_ids
    end = next(index for index, token in enumerate(free) if token in session.tokenizer.special_ids)
    stop = [session.tokenizer.backend.id_to_token(free[end]), "never found"]
    ended = session.generate("Once", **settings, stop=stop)
    assert ended.token_ids == free[: end + 1]
    assert ended.finish_reason == "eos"


def test_stop_strings_across_pieces():
    stops = StopStrings(["<end>", "nd>!"])
    assert [stops.push(piece) for piece in ["a<", "en", "x<e", "n"]] == ["a", "", "<enx", ""]
    assert stops.push("d>!") == "" and stops.found
    stops = StopStrings(["aab"])
    assert [stops.push(piece) for piece in "aaa"] == ["", "", "a"]
    assert stops.push("b") == "" and stops.found


def test_a_folder_without_tokenizer_still_works_on_ids(make_session):
    session = make_session(with_tokenizer=False)
    generation = session.generate(PROMPT, max_new_tokens=5)
    assert generation.token_ids == make_session().generate(PROMPT, max_new_tokens=5).token_ids
    assert generation.text == ""
    for use in (
        lambda: session.generate("text"),
        lambda: session.generate([{"role": "user", "content": "x"}]),
        lambda: session.stream(PROMPT),
        lambda: session.generate(PROMPT, stop="x"),
        session.chat,
    ):
        with pytest.raises(DogeExportError, match=r"no tokenizer\.json"):
            use()


def test_token_ids_may_be_arrays(make_session):
    import torch

    session = make_session()
    expected = session.generate(PROMPT, max_new_tokens=5)
    assert session.generate(np.array(PROMPT), max_new_tokens=5) == expected
    assert session.generate(tuple(PROMPT), max_new_tokens=5) == expected
    assert session.generate(torch.tensor([PROMPT, PROMPT]), max_new_tokens=5) == [expected, expected]
    assert session.generate([np.array(PROMPT)], max_new_tokens=5) == [expected]


@pytest.mark.parametrize(
    "prompt, line",
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        (np.zeros((0,), np.int64), "prompt is empty"),
        ([[]], "prompt is empty"),
        (["hello", ""], "prompt is empty"),
        ([5, -1], "token id -1 is out of range: the model has ids from 0 to"),
        ([10**6], "token id 1000000 is out of range"),
        ([1.5], "not"),
        ([1, 2.5], "2.5 is not a token id"),
        ([True], "not"),
        ([1, "a"], "'a' is not a token id"),
        (None, "a prompt is a text"),
        (3, "a prompt is a text"),
        ([None], "a prompt is a text"),
        (b"hello", "not bytes: decode them into a text"),
        (bytearray(b"hello"), "not bytearray: decode them into a text"),
        (b"", "not bytes"),
        ([b"hello"], "not bytes"),
        (list(range(129)), "129 tokens and this export holds 128.*--max-length"),
        (list(range(128)), "128 tokens and prompt and answer may have 128 together"),
        ([[1], list(range(129))], "129 tokens"),
        ("long " * 400, "this export holds 128"),
    ],
)
def test_bad_prompts_are_one_line_and_nothing_runs(make_session, prompt, line):
    session = make_session()
    with pytest.raises(DogeExportError, match=line) as caught:
        session.generate(prompt)
    assert "\n" not in str(caught.value)
    assert session.decoder.runs == []


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"stop": [""]}, "stop is"),
        ({"stop": [3]}, "stop is"),
        ({"stop": 5}, "stop is 5, expected a text or a list of texts"),
        ({"stop": "\udcff"}, "is not Unicode text: it has a lone surrogate"),
        ({"stop": b"end"}, "stop is b'end', expected"),
        ({"eos_token_id": b"end"}, "eos_token_id is b'end', expected"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"top_p": 3}, "top_p is 3"),
    ],
)
def test_bad_settings_are_one_line(make_session, settings, line):
    session = make_session()
    for use in (session.generate, session.stream):
        with pytest.raises(DogeExportError, match=line):
            use(PROMPT, **settings)


def test_other_settings_are_given_by_transformers_names(make_session):
    session = make_session({"suppress_tokens": list(range(5, 200)), "stop_strings": ["never there"]})
    answer = session.generate(PROMPT, max_new_tokens=30, no_repeat_ngram_size=1, eos_token_id=-1)
    assert len(set(answer.token_ids)) == 30 and not set(range(5, 200)) & set(answer.token_ids)
    assert session.stream(PROMPT, max_new_tokens=3, bad_words_ids=[[7]]).generation.token_ids == []
    free = make_session().generate(PROMPT, max_new_tokens=30, eos_token_id=[])
    plain = session.generate(PROMPT, max_new_tokens=30, defaults=GenerationConfig())  # as validation asks
    assert plain.token_ids == free.token_ids
    with pytest.raises(DogeExportError, match="num_beams is 2, and this runtime is without beam search"):
        session.generate(PROMPT, num_beams=2)
    with pytest.raises(DogeExportError, match="sequence_bias has token id 99999"):
        session.generate(PROMPT, sequence_bias=[[[99999], 1.0]])
    with pytest.raises(TypeError, match="temprature"):
        session.generate(PROMPT, temprature=1)


def test_stop_strings_of_the_folder_count_where_the_caller_names_none(make_session):
    free = make_session().generate(PROMPT, max_new_tokens=30, eos_token_id=[])
    stop = free.text[3:5]
    stopped = make_session({"stop_strings": stop}).generate(PROMPT, max_new_tokens=30, eos_token_id=[])
    assert (stopped.text, stopped.finish_reason) == (free.text[: free.text.index(stop)], "stop")
    asked = make_session({"stop_strings": [stop]}).generate(PROMPT, max_new_tokens=30, eos_token_id=[], stop=[])
    assert asked.token_ids == free.token_ids


def test_dataclass_messages_are_prompts(make_session):
    @dataclasses.dataclass
    class Message:
        role: str
        content: str

    session = make_session()
    given = session.generate([Message("user", "Where?")], max_new_tokens=5)
    assert given == session.generate([{"role": "user", "content": "Where?"}], max_new_tokens=5)


def test_a_batch_cannot_be_streamed(make_session):
    with pytest.raises(DogeExportError, match="batch cannot be streamed"):
        make_session().stream(["a", "b"])


def test_logits_in_pieces_equal_logits_at_once(make_session):
    session = make_session()
    ids = np.random.default_rng(0).integers(0, session.decoder.vocab_size, (2, 26))
    whole = session.logits(ids)
    assert whole.dtype == np.float32 and whole.shape == (2, 26, session.decoder.vocab_size)
    np.testing.assert_allclose(session.logits(ids, chunks=[24, 1, 1]), whole, atol=1e-4)
    np.testing.assert_allclose(session.logits(ids[0].tolist(), chunks=[1] * 26), whole[:1], atol=1e-4)
    assert session.decoder.runs[1:4] == [(2, 24), (2, 1), (2, 1)]
    np.testing.assert_array_equal(session.logits(ids, chunks=np.array([26])), whole)


def test_logits_with_left_padding_equal_those_without(make_session):
    session = make_session()
    alone = session.logits([5, 6, 7])
    padded = session.logits([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], chunks=[2, 3])
    np.testing.assert_allclose(padded[:1, 2:], alone, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (([[1, 2], [3]],), "rows of different lengths"),
        (([],), "has shape"),
        (([[]],), "has shape"),
        (([[[1]]],), "has shape"),
        (([1.5],), "float64 values"),
        (([True],), "bool values"),
        (([5, 400000],), "token id 400000 is out of range"),
        (([-1],), "token id -1 is out of range"),
        (([1] * 129,), "129 tokens and this export holds 128"),
        (([1, 2], [1]), "attention_mask has shape"),
        (([1, 2], [[1], [1, 0]]), "attention_mask has rows"),
        (([1, 2], [1, 2]), "other values than 0"),
        (([1, 2], [1, 0]), "padding on the left"),
        (([1, 2, 3], [1, 0, 1]), "padding on the left"),
        (([1, 2], [0, 0]), "padding on the left"),
        (([1, 2], None, [1, 2]), "add up to the 2 tokens"),
        (([1, 2], None, [3, -1]), "add up to the 2 tokens"),
        (([1, 2], None, []), "add up to the 2 tokens"),
        (([1, 2], None, [1.0, 1.0]), "add up to the 2 tokens"),
        (([1, 2], None, 2), "chunks is 2, expected a list of positive integers that add up to the 2 tokens"),
        (([1, 2], None, np.array(2)), "chunks is 2, expected"),
        (([1, 2], None, "11"), "chunks is '11', expected"),
    ],
)
def test_bad_input_to_logits_is_one_line(make_session, arguments, line):
    session = make_session()
    with pytest.raises(DogeExportError, match=line):
        session.logits(*arguments)
    assert session.decoder.runs == []


def test_loading_what_is_no_export_is_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "missing", str(tmp_path)):
        with pytest.raises(DogeExportError) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(DogeExportError, match="threads is 0"):
        load(tmp_path, threads=0)


def test_one_provider_may_be_given_by_its_name(exported):
    assert load(exported(), threads=1, providers="CPUExecutionProvider").generate([1, 5], max_new_tokens=2).token_ids
    with pytest.raises(DogeExportError, match="has no AbacusExecutionProvider "):
        load(exported(), providers="AbacusExecutionProvider")
