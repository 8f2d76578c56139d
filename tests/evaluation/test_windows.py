"""What smaller windows cost, against the same numbers of each window's own session."""

from __future__ import annotations

import json

import numpy as np
import pytest

import doge_export
from doge_export.evaluation.windows import STEPS, evaluate_windows
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.runtime.prompts import need_tokenizer

TEXT = "Once upon a time, there was a little cat named Tom. Tom liked to play in the garden with a red ball. " * 12


def test_equals_each_session_by_itself(nano_folder, native_library):
    score = evaluate_windows(nano_folder, TEXT, [16, 32, 64, 16], length=200, threads=1, backend="native")
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


def test_choices_are_answered_behind_a_bounded_cache(tmp_path):
    """A prompt of more tokens than the window is read again for the second choice, since its keys are gone."""
    made = doge_export.export("doge-nano", tmp_path / "out", target="portable", cache="bounded", validate=False)
    item = {
        "question": TEXT[:400],
        "choices": ["Tom has a cat named Mia, who likes to play with it.", "ball"],
        "answer": 1,
    }
    answers = [
        doge_export.evaluate_choices(doge_export.load(folder, threads=1, backend="graph"), [item]).answers[0]
        for folder in (
            made.folder,
            doge_export.export("doge-nano", tmp_path / "two", target="portable", validate=False).folder,
        )
    ]
    assert answers[0].log_likelihoods == pytest.approx(answers[1].log_likelihoods, abs=1e-3)
