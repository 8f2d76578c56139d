"""samples/javascript/native.mjs over a module that computes nothing; with the true ones tests/interop/test_wasm.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def happened(**work):
    """What native_fake.mjs prints, see there."""
    script = Path(__file__).with_name("native_fake.mjs")
    done = subprocess.run(["node", str(script), json.dumps(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_prompt_uses_the_keys_of_the_one_before():
    first, second = [5, 6, 7, 8, 9], [5, 6, 7, 1, 2]
    assert happened(prompts=[first, second])["rewinds"] == [0, 3]


def test_no_prompt_uses_the_keys_of_one_that_was_read_whole():
    """They depend on its length: beyond the chunkable length RoPE has other frequencies."""
    long, short = list(range(5, 25)), list(range(5, 12))
    found = happened(chunkableLength=10, prompts=[long, short, short])
    assert found["rewinds"] == [0, 0, 6]
    assert [len(ids) for ids in found["runs"]] == [20, 1, 7, 1, 1, 1]
