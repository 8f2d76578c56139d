"""What smaller windows cost, against the same numbers of each window's own session."""

from __future__ import annotations

import json

import numpy as np
import pytest

import doge_export
from doge_export.errors import DogeExportError, RunFailed
from doge_export.evaluation.windows import STEPS, evaluate_windows
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.runtime.decoders.native import NativeDecoder
from doge_export.runtime.loading import with_window
from doge_export.runtime.native.backend import open_native
from doge_export.runtime.prompts import need_tokenizer

TEXT = "Once upon a time, there was a little cat named Tom. Tom liked to play in the garden with a red ball. " * 12


def test_equals_each_session_by_itself(nano_folder, native_library):
    opened = doge_export.load(nano_folder, threads=1, backend="native")
    score = evaluate_windows(opened, TEXT, [16, 32, 64, 16], length=200)
    assert [(each.window, each.trained) for each in score.windows] == [(64, True), (32, False), (16, False)]
    ids = np.array(need_tokenizer(doge_export.load(nano_folder).tokenizer).encode(TEXT))
    assert score.length == 200 and score.rows == -(-len(ids) // 200) > 1
    expected = {}
    for window in (64, 32, 16):
        session = doge_export.load(nano_folder, threads=1, backend="native", window=window)
        whole = log_softmax(session.logits(ids[None, :200], chunks=[200 - STEPS, *[1] * STEPS])[0])
        rest = [
            log_softmax(session.logits(row[None])[0]) for row in np.split(ids[200:], range(200, len(ids) - 200, 200))
        ]
        expected[window] = [whole, *rest]
    rows = np.split(ids, range(200, len(ids), 200))
    for each in score.windows:
        first, second = each.stretches[:2]
        assert (first.first, first.end, second.end) == (0, 64, 200) or second.end == 128
        assert first.positions == 64 * len(rows)
        losses = [
            -logs[np.arange(64), row[1:65]][: len(row) - 1]
            for logs, row in zip(expected[each.window], rows, strict=True)
        ]
        assert first.perplexity == pytest.approx(float(np.exp(np.concatenate(losses).mean())), rel=1e-4)
        kls = [kl_divergence(*pair)[64 : second.end] for pair in zip(expected[64], expected[each.window], strict=True)]
        assert second.kl_mean == pytest.approx(float(np.concatenate(kls).mean()), rel=1e-3, abs=1e-9)
        assert each.tokens_per_second > 0
    assert score.windows[1].stretches[0].kl_mean > 0 == score.windows[0].stretches[0].kl_mean
    assert score.windows[2].stretches[1].kl_mean > score.windows[1].stretches[1].kl_mean > 1e-6
    assert score.windows[1].cache_bytes <= score.windows[0].cache_bytes


def test_command(run, nano_folder, native_library, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "text").write_text(TEXT)
    given = ("eval", nano_folder, "--text", tmp_path / "text", "--window", 16, "--length", 150, "--threads", 1)
    shown = run(*given, "--plot", tmp_path / "plot.svg").stdout
    assert "window 64 (trained)" in shown and "tokens/s" in shown and "approximation" in shown
    assert "position" in (tmp_path / "plot.svg").read_text()
    found = json.loads(run(*given, "--json").stdout)["windows"]
    assert [each["window"] for each in found["windows"]] == [64, 16]
    done = run(*given, "--window", 65)
    assert done.exit_code == 2 and "expected 1 to 64" in done.stderr and done.stderr.count("\n") == 1
    done = run(*given, "--length", 10**6)
    assert done.exit_code == 2 and "the length is 1000000" in done.stderr


def test_opens_the_weights_once(run, nano_folder, native_library, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("doge_export.runtime.loading.open_native", lambda *args: opened.append(1) or open_native(*args))
    (tmp_path / "text").write_text(TEXT[:300])
    done = run("eval", nano_folder, "--text", tmp_path / "text", "--window", 16, "--window", 32, "--threads", 1)
    assert done.exit_code == 0 and opened == [1]
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: --window is the number of keys") and note.endswith("read at once is --length")


def test_reads_no_more_in_pieces_than_may_be(session_of, nano_folder, native_library, monkeypatch, capsys):
    with pytest.raises(DogeExportError, match=r"read in pieces, .* --cdmoe-routing per-token"):
        evaluate_windows(session_of("doge-nano-moe"), TEXT, [16])
    session = doge_export.load(nano_folder, threads=1, backend="native")
    session.decoder.chunkable_length = 50
    assert evaluate_windows(session, TEXT[:300], [16], length=90).length == 50
    assert "the length is 50 instead of 90: longer texts must be read whole" in capsys.readouterr().err


def test_logits_that_are_not_finite_are_refused(nano_folder, native_library, monkeypatch):
    session = doge_export.load(nano_folder, threads=1, backend="native")
    monkeypatch.setattr(NativeDecoder, "forward", lambda self, ids: np.full((1, ids.shape[1], self.vocab_size), np.nan))
    with pytest.raises(RunFailed, match="logits that are not finite"):
        evaluate_windows(session, TEXT[:300], [16])


@pytest.fixture(scope="module")
def bounded_folder(tmp_path_factory):
    """doge-nano with a bounded cache, for onnxruntime's standard operators."""
    out = tmp_path_factory.mktemp("bounded") / "out"
    return doge_export.export("doge-nano", out, target="portable", cache="bounded", validate=False).folder


def test_a_window_shares_the_graph(bounded_folder, nano_folder):
    """The bounded graph is opened once; a graph whose window is built in has no other."""
    session = doge_export.load(bounded_folder, threads=1, backend="graph")
    decoder = with_window(session, 16)
    assert decoder.window == 16 and decoder._session is session.decoder._session
    expected = doge_export.load(bounded_folder, threads=1, backend="graph", window=16).decoder
    ids = np.arange(3, 43)[None]
    np.testing.assert_array_equal(decoder.forward(ids), expected.forward(ids))
    with pytest.raises(DogeExportError, match="graph is built in: leave the window out"):
        with_window(doge_export.load(nano_folder, threads=1, backend="graph"), 16)


def test_choices_are_answered_behind_a_bounded_cache(bounded_folder, tmp_path):
    """A prompt of more tokens than the window is read again for the second choice, since its keys are gone."""
    item = {
        "question": TEXT[:400],
        "choices": ["Tom has a cat named Mia, who likes to play with it.", "ball"],
        "answer": 1,
    }
    answers = [
        doge_export.evaluate_choices(doge_export.load(folder, threads=1, backend="graph"), [item]).answers[0]
        for folder in (
            bounded_folder,
            doge_export.export("doge-nano", tmp_path / "two", target="portable", validate=False).folder,
        )
    ]
    assert answers[0].log_likelihoods == pytest.approx(answers[1].log_likelihoods, abs=1e-3)
