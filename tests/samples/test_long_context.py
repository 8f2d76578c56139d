"""The programs of samples/long_context, at a small size."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

import doge_export

SAMPLE = Path(__file__).parents[2] / "samples" / "long_context"
OTHERS = ("dialogues", "grammar", "stories", "words")
"""Modules of samples/train_nano that recall.py imports."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("long")
    doge_export.export("doge-nano", made / "bounded", cache="bounded", max_length="unlimited", validate=False)
    doge_export.export("doge-nano", made / "unbounded", max_length=600, validate=False)
    return made / "bounded", made / "unbounded"


@pytest.fixture
def run(native_library, monkeypatch, capsys):
    """Runs a script of the sample, and returns its exit code and its lines."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [str(SAMPLE / script), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        try:
            runpy.run_path(str(SAMPLE / script), run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code
        finally:
            for name in OTHERS:
                sys.modules.pop(name, None)
        return code, capsys.readouterr().out.splitlines()

    return call


def test_memory_stays_and_both_are_drawn(run, folders, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.svg"
    code, lines = run("measure.py", *folders, "--tokens", 500, "--every", 250, "--plot", plot, "--json")
    assert code == 0 and plot.read_text().count("<svg") == 1
    bounded, unbounded = map(json.loads, lines)
    assert [row["tokens"] for row in bounded["rows"]] == [64, 128, 250, 256, 500]
    assert (bounded["cache"], unbounded["cache"]) == ("bounded", "unbounded")
    assert bounded["cache_bytes"] < unbounded["cache_bytes"] and bounded["turn_ms"] > 0
    assert all(row["resident_mb"] > 10 and row["tokens_per_processor_second"] > 1 for row in bounded["rows"])
    assert (
        bounded["speed_against_twice_the_window"] > 0.5
    )  # in turns, by processor time; the machine may do other things
    assert bounded["rows"][-1]["resident_mb"] - bounded["rows"][1]["resident_mb"] <= 1


def test_speed_within_the_window(run, folders):
    code, lines = run("measure.py", *folders, "--within", 2, "--backend", "native")
    assert code == 0 and len(lines) == 2 and "1.000x the speed of" in lines[1]


def test_answers_about_facts_beyond_the_window_are_the_same(run, folders):
    code, lines = run("recall.py", *folders, "--questions", 3, "--windows", 2, 4, "--json")
    found = json.loads(lines[-1])
    assert code == 0 and found["window"] == 64
    for row in found["rows"]:
        assert row["same"] == row["questions"] == 3 and row["tokens"] > 64 * row["windows"]
        assert row["right"]["bounded"] == row["right"]["unbounded"]
