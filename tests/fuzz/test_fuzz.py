"""The fuzzer: its cases can be had again, it counts what it should, and it finds nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import run as fuzz
from mutations import damaged_bytes, damaged_json, damaged_safetensors, damaged_template

JSON = json.dumps({"a": [1, 2, {"b": "c"}], "d": {"e": 1.5, "f": None}}).encode()
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + bytes(4)


@pytest.mark.parametrize(
    ("damage", "content"),
    [
        (damaged_json, JSON),
        (damaged_bytes, JSON),
        (damaged_safetensors, SAFETENSORS),
        (damaged_template, b"{{ messages }}"),
    ],
)
def test_a_seed_gives_the_same_damage_again(damage, content):
    made = [damage(content, random.Random(seed)) for seed in range(300)]
    assert made == [damage(content, random.Random(seed)) for seed in range(300)]
    assert len(set(made)) > 30
    assert sum(one != content for one in made) > 250


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("print('begin 0 onnx'); print('end 0 ok'); sys.stdout.flush(); time.sleep(9)", {}),
        ("print('begin 0 onnx'); sys.stdout.flush(); time.sleep(9)", {"hang": 1}),
        ("print('begin 0 onnx'); sys.stdout.flush(); os.abort()", {"crash": 1}),
        ("print('begin 0 onnx'); print('end 0 wrong x'); sys.stdout.flush(); time.sleep(9)", {"traceback": 1}),
    ],
)
def test_tracebacks_crashes_and_hangs_are_counted(tmp_path, monkeypatch, program, found):
    """A worker that behaves so; the supervisor ends it."""
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os, sys, time\n{program}\n")
    monkeypatch.setattr(fuzz, "__file__", str(worker))
    monkeypatch.setattr(fuzz, "LIMIT", 0.3)
    seconds = 0.6 if "end 0" not in program else 0.25
    counted = fuzz.supervise(tmp_path, 0, seconds / 60, ["onnx"])
    assert {kind: min(len(all), 1) for kind, all in counted.items() if all} == found


def test_how_a_command_ends_is_judged(tmp_path):
    assert fuzz.run_case(["verify", str(tmp_path)]) is None
    assert "no such command" in str(fuzz.run_case(["nothing"])).lower()


@pytest.mark.slow
def test_no_traceback_crash_or_hang():
    """DOGE_FUZZ_SEED and DOGE_FUZZ_MINUTES choose others; the bar of ten minutes is that of the command."""
    seed, minutes = os.environ.get("DOGE_FUZZ_SEED", "0"), os.environ.get("DOGE_FUZZ_MINUTES", "2")
    done = subprocess.run(
        [sys.executable, fuzz.__file__, "--seed", seed, "--minutes", minutes], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
