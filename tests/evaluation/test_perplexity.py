"""Perplexity against what transformers' own loss makes of the same windows."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

import doge_export
from doge_export.assets import BUNDLED
from doge_export.errors import DogeExportError, RunFailed
from doge_export.evaluation import perplexity, scorer
from doge_export.evaluation.perplexity import windows
from doge_export.runtime import long_text

TEXT = """Once upon a time, there was a small fox. The fox liked to play in the garden. One day, it found a red ball.
"What a lovely ball!" said the fox, and it ran home. Its mother was happy — très contente — and they played until dark.

Once upon a time, there was a girl named Mia. Mia went to the park with Ben, and they saw 12 ducks on the pond. Ben gave
the ducks some bread. "Thank you!" said Mia. They laughed, they ran, and at the end of the day they went home together.
"""
TOLERANCE = 1e-4


def by_transformers(model, ids: torch.Tensor, window: int, stride: int) -> tuple[float, int]:
    """The guide's loop: the sum of negative log-likelihoods and the number of labels behind it."""
    nats, tokens, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - previous_end)] = -100
        count = int((labels[:, 1:] != -100).sum())
        if count:
            with torch.no_grad():
                nats += count * float(model(ids[:, begin:end], labels=labels).loss)
            tokens += count
        previous_end = end
        if end == ids.shape[1]:
            break
    return nats, tokens


EXTENTS = [(None, None), (64, 16), (100, 99), (32, 32)]


@pytest.mark.parametrize(
    "name, window, stride", [("doge-nano", 2, 1), *((name, *extents) for name in BUNDLED for extents in EXTENTS)]
)
def test_equals_transformers(name, window, stride, reference, session_of):
    model, tokenizer = reference(name)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    score = doge_export.evaluate_text(session_of(name), TEXT, window=window, stride=stride)
    nats, tokens = by_transformers(model, ids, window or 256, stride or 128)
    assert score.tokens == tokens
    assert score.nats_per_token == pytest.approx(nats / tokens, rel=TOLERANCE)
    assert score.perplexity == pytest.approx(math.exp(nats / tokens), rel=TOLERANCE * max(1, nats / tokens))


def test_bits_per_byte_are_of_the_whole_text_behind_a_bos_token(session_of):
    score = doge_export.evaluate_text(session_of("doge-nano"), TEXT)
    assert score.bytes == len(TEXT.encode())
    assert score.bits_per_byte == pytest.approx(score.nats_per_token * score.tokens / math.log(2) / score.bytes)


def test_bytes_of_tokens_that_are_not_scored_do_not_count(session_of):
    """Windows side by side: the first token of each has nothing before it."""
    session = session_of("doge-nano")
    encoding = session.tokenizer.backend.encode(TEXT)
    left_out = sum(end - start for start, end in encoding.offsets[32::32])
    score = doge_export.evaluate_text(session, TEXT, window=32, stride=32)
    assert score.bytes == len(TEXT.encode()) - left_out
    assert left_out > 0


@pytest.mark.parametrize(
    "length, window, stride", [(10, 4, 2), (10, 4, 4), (9, 4, 4), (3, 8, 4), (11, 5, 1), (50, 9, 7)]
)
def test_every_token_is_scored_once_with_the_context_that_was_promised(length, window, stride):
    scored = []
    for begin, first, end in windows(length, window, stride):
        assert end - begin <= window
        for index in range(first, end):
            scored.append(index)
            assert index - begin >= min(index, max(window - stride, 1))
    missing = set(range(length)) - set(scored)
    assert len(scored) == len(set(scored))
    assert missing == ({0} if stride < window else set(range(0, length, stride)))


def test_pieces_change_nothing_and_logits_of_one_piece_are_held(session_of, reads, monkeypatch):
    session = session_of("doge-nano")
    whole = doge_export.evaluate_text(session, TEXT, window=120, stride=30)
    monkeypatch.setattr(scorer, "PREFILL_CHUNK", 7)
    seen = reads(session)
    in_pieces = doge_export.evaluate_text(session, TEXT, window=120, stride=30)
    assert in_pieces.nats_per_token == pytest.approx(whole.nats_per_token, rel=1e-5)
    assert max(read for read, _ in seen) == max(kept for _, kept in seen) == 7


def test_tokens_that_route_one_another_are_read_whole(session_of, reads, monkeypatch):
    session = session_of("doge-nano-moe")
    monkeypatch.setattr(scorer, "PREFILL_CHUNK", 7)
    seen = reads(session)
    doge_export.evaluate_text(session, TEXT, window=60, stride=30)
    assert session.decoder.chunkable_length == 0
    assert {read for read, _ in seen[:-1]} == {60}


def test_a_session_answers_afterwards_as_before(session_of):
    session = session_of("doge-nano")
    chat = session.chat()
    first = "".join(chat.send("Hey how are you doing?", max_new_tokens=12))
    doge_export.evaluate_text(session, TEXT)
    chat.reset()
    assert "".join(chat.send("Hey how are you doing?", max_new_tokens=12)) == first


def test_an_answer_being_streamed_is_not_disturbed(session_of, monkeypatch):
    monkeypatch.setattr("doge_export.runtime.turns.STANDSTILL", 0.05)
    session = session_of("doge-nano")
    settings = {"max_new_tokens": 20, "eos_token_id": []}
    whole = session.generate("Once upon a time", **settings).text
    stream = session.stream("Once upon a time", **settings)
    first = next(stream)
    with pytest.raises(doge_export.SessionBusy, match="open in this thread"):
        doge_export.evaluate_text(session, "Once upon a time")
    assert first + "".join(stream) == whole


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("", {}, "empty"),
        ("a \ud800", {}, "surrogate"),
        (TEXT, {"window": 1}, "window is 1"),
        (TEXT, {"window": 257}, "expected 2 to 256"),
        (TEXT, {"window": 8, "stride": 9}, "stride is 9, expected 1 to 8"),
        (TEXT, {"stride": 0}, "stride is 0"),
        (TEXT, {"window": 12.0}, "window is 12.0"),
    ],
)
def test_what_cannot_be_scored(session_of, text, options, message):
    with pytest.raises(DogeExportError, match=message):
        doge_export.evaluate_text(session_of("doge-nano"), text, **options)


def test_a_text_in_stretches_scores_as_a_whole_one(session_of, monkeypatch):
    session = session_of("doge-nano")
    whole = [doge_export.evaluate_text(session, TEXT, window=64, stride=stride) for stride in (32, 64)]
    monkeypatch.setattr(long_text, "STRETCH", 150)
    assert [doge_export.evaluate_text(session, TEXT, window=64, stride=stride) for stride in (32, 64)] == whole


def test_a_text_of_any_size_is_refused_in_a_line(session_of, run, nano_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(perplexity, "LONGEST_TEXT", 100)
    with pytest.raises(DogeExportError, match=f"has {len(TEXT)} characters, expected at most 100"):
        doge_export.evaluate_text(session_of("doge-nano"), TEXT)
    (tmp_path / "text.txt").write_text(TEXT)
    done = run("eval", nano_folder, "--text", tmp_path / "text.txt")
    assert done.exit_code == 2 and "text.txt has more than 100 bytes" in done.stderr


def test_one_token_is_too_short(session_of):
    session = session_of("doge-nano")
    session.tokenizer.backend.post_processor = None  # this one begins every text with a bos token
    session.tokenizer.backend.pre_tokenizer = None
    with pytest.raises(DogeExportError, match="too short: it has 1 token"):
        doge_export.evaluate_text(session, "a")


def test_a_folder_without_a_tokenizer(session_of):
    session = session_of("doge-nano")
    session.tokenizer = None
    with pytest.raises(DogeExportError, match=r"no tokenizer\.json"):
        doge_export.evaluate_text(session, TEXT)


def test_a_folder_for_another_task(task_export, tmp_path, run):
    folder = task_export("feature-extraction").folder
    with pytest.raises(DogeExportError, match="text-generation"):
        doge_export.evaluate_text(doge_export.load(folder), TEXT)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    done = run("eval", folder, "--text", tmp_path / "text.txt")
    assert done.exit_code == 2 and "text-generation" in done.stderr


def test_logits_that_are_not_finite_fail_the_run(session_of, monkeypatch):
    session = session_of("doge-nano")
    forward = session.decoder.forward
    monkeypatch.setattr(session.decoder, "forward", lambda *arguments: forward(*arguments) * float("nan"))
    with pytest.raises(RunFailed, match="not finite"):
        doge_export.evaluate_text(session, TEXT)


def test_command(run, nano_folder, tmp_path, session_of):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    expected = doge_export.evaluate_text(session_of("doge-nano"), TEXT, window=64)
    done = run("eval", nano_folder, "--text", file, "--length", 64, "--threads", 1, "--json")
    found = json.loads(done.stdout)["text"]
    assert found == pytest.approx(expected.to_dict())
    shown = run("eval", nano_folder, "--text", file, "--length", 64, "--threads", 1).stdout
    assert f"perplexity      {expected.perplexity:.4f}" in shown


@pytest.mark.parametrize(
    "content, message", [(None, "cannot read"), (b"", "empty"), (b"Once \xff", "not UTF-8"), ("folder", "cannot read")]
)
def test_a_file_that_is_none_is_one_line(run, nano_folder, tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    done = run("eval", nano_folder, "--text", file)
    assert done.exit_code == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--length", 8, "--choices", "q"],
        ["--window", 8, "--choices", "q"],
        ["--text", "t", "--details", "d"],
        ["--text", "t", "--plot", "p.svg"],
        ["--text", "t", "--window", 8, "--stride", 4],
    ],
)
def test_options_that_do_not_go_together(run, nano_folder, arguments):
    assert run("eval", nano_folder, *arguments).exit_code == 2


def test_needs_nothing_of_the_export(nano_folder):
    program = """
import sys
import doge_export
session = doge_export.load(sys.argv[1], threads=1)
doge_export.evaluate_text(session, "Once upon a time")
doge_export.evaluate_choices(session, [{"question": "Once", "choices": ["upon", "up"], "answer": 0}])
print(sorted({"torch", "transformers", "onnx", "safetensors", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, nano_folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
