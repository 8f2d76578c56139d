"""The load test of samples/serve, against a server that has to be there for a moment only."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

SAMPLE = Path(__file__).parents[2] / "samples" / "serve"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script of the sample, and returns its exit code and its lines."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(SAMPLE / script), run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code
        return code, capsys.readouterr().out.splitlines()

    return call


def test_clients_are_counted_and_vanish(run, bundled_folder, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "serve"))
    from serving import KEY, serving

    with serving(bundled_folder("doge-nano"), parallel=2) as served:
        options = ("--url", served.base, "--requests", 6, "--max-tokens", 5)
        code, lines = run("load.py", *options, "--api-key", KEY, "--clients", 1, 3, "--vanish", 4)
        assert code == 0 and lines[0].startswith("4 clients vanished in ")
        one, three = (json.loads(line) for line in lines[1:3])
        assert (one["clients"], three["clients"]) == (1, 3)
        for numbers in (one, three):
            assert numbers["requests"] == 6 and numbers["errors"] == 0 and numbers["tokens_per_second"] > 0
            assert 0 < numbers["first_p50_ms"] <= numbers["first_p95_ms"] <= numbers["whole_p95_ms"]
        served.model.scheduler._parallel, served.model.scheduler._max_queue = 1, 0
        served.until_idle()
        code, lines = run("load.py", *options, "--api-key", KEY, "--clients", 4)
        assert code == 1 and any("429" in line for line in lines)


def test_events_are_counted_where_a_server_counts_nothing(monkeypatch):
    """As that of llama-cpp-python does, whose streams end without numbers."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    import load

    def tokens(*more):
        events = [
            b'{"choices": [{"text": " word"}]}',
            b'{"choices": [{"text": ""}]}',
            b'{"choices":[{"text":"a"}]}',
            *more,
        ]
        return load.outcome(b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(b"data: " + each + b"\n\n" for each in events))

    usage = b'{"choices": [], "usage": {"completion_tokens": 7}}'
    assert tokens(b"[DONE]") == (2, "") and tokens(usage, b"[DONE]") == (7, "")
    assert tokens() == (0, "the stream was cut")
    assert load.outcome(b"HTTP/1.1 429 Too Many Requests\r\n\r\n")[1].endswith("429 Too Many Requests")


def test_a_folder_gets_a_tokenizer_that_knows_every_id(run, bundled_folder, tmp_path):
    from doge_export.runtime.tokenizer import Tokenizer

    (tmp_path / "config.json").write_text('{"vocab_size": 5000}')
    assert run("give_tokenizer.py", bundled_folder("doge-nano"), tmp_path)[0] == 0
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode([4999]).strip() == "word4999"
    assert tokenizer.encode("Once upon a time") == Tokenizer.from_folder(bundled_folder("doge-nano")).encode(
        "Once upon a time"
    )


@pytest.mark.slow
def test_a_cold_start_is_timed(run, bundled_folder):
    code, lines = run("cold_start.py", bundled_folder("doge-nano"))
    seconds = json.loads(lines[0])
    assert code == 0 and 0 < seconds["answers"] <= seconds["ok"] < 30
