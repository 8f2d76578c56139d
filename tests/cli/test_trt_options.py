"""What `doge-export trt` refuses or plans before TensorRT is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_plan_refuses_the_output_that_a_build_would(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    done = run("trt", "doge-nano", tmp_path / "out", "--dry-run", "--force")
    assert done.exit_code == 2 and "which doge-export did not write" in done.stderr
    written = {"doge_export": "0", "files": {"notes": {}}}
    (tmp_path / "out" / "doge_export.json").write_text(json.dumps(written))
    done = run("trt", "doge-nano", tmp_path / "out", "--dry-run")
    assert done.exit_code == 2 and "is not empty" in done.stderr
    assert run("trt", "doge-nano", tmp_path / "out", "--dry-run", "--force", "--no-calibrate").exit_code == 0
    assert [file.name for file in (tmp_path / "out").iterdir() if file.suffix == ""] == ["notes"]


def test_what_the_files_leave_open_can_be_said(run):
    model = GOLDEN / "g4b-moe-m7"
    plan = ("trt", model, "--dry-run", "--json", "--no-calibrate")
    assert "M7 is assumed (--cdmoe)" in run(*plan).stderr
    said = run(*plan, "--cdmoe", "M6")
    assert said.exit_code == 0, said.stderr
    assert "is assumed" not in said.stderr
    assert json.loads(said.stdout)["plugin_nodes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selftest", "report.json", "out"], "--selftest takes the name of its report"),
        (["--selftest", "--dry-run"], "--selftest takes the name of its report"),
        (["--selftest", "."], "report .: is a folder"),
        (["--selftest", "none/report.json"], "its folder does not exist"),
        (["doge-nano", "out", "--save-results", "file"], "--save-results file: is a file"),
        (["doge-nano", "out", "--timing-cache", "none/cache"], "--timing-cache none/cache: its folder does not exist"),
        (["doge-nano", "out", "--timing-cache", "."], "--timing-cache .: is a folder"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_the_work(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    done = run("trt", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
