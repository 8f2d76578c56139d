"""samples/android: an .ort file answers as its graph does.

pytest -m slow tests/interop/test_android.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.package import read_manifest

pytestmark = pytest.mark.slow

CONVERT = Path(__file__).parents[2] / "samples" / "android" / "convert.py"
IDS, TOKENS = [1, 45, 77, 32, 99], 24


def run(*command):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_converted_graph_answers_equally(folder, script, tmp_path, precision):
    done = run(CONVERT, folder, tmp_path / "out", precision)
    assert done.returncode == 0, done.stderr
    converted = Path(done.stdout.strip())
    answers = [
        run(script("plain_greedy.py"), file, TOKENS, *IDS).stdout
        for file in (converted, folder / read_manifest(folder).graph_of(precision))
    ]
    assert answers[0] == answers[1] != ""
    (listed,) = converted.parent.glob("*.config")
    lines = [line for line in listed.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(line.split(";")[0] in ("ai.onnx", "com.microsoft") for line in lines)


def test_a_folder_of_another_target_is_a_line(tmp_path):
    (tmp_path / "doge_export.json").write_text('{"target": "native", "graphs": {}}')
    done = run(CONVERT, tmp_path, tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
