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


def test_memory_is_taken_as_prompts_ask_for_it():
    """For 2^24 tokens it would be 134 MB; times 8, 2^29 of them wrap around to nothing."""
    for length in (2**24, 2**29):
        found = happened(maxLength=length, prompts=[[5], [6] * 300, [7] * 301], chunkableLength=299)
        assert "error" not in found and max(found["memory"]) == 301 * 8 + 64


@pytest.mark.parametrize(("vocabulary", "length"), [(4096, 512), (64, 256), (32, 512)])
def test_a_weight_file_of_another_manifest_is_a_line(vocabulary, length):
    error = happened(file={"vocabulary": vocabulary, "length": length})["error"]
    found, said = (
        f"{vocabulary} tokens of vocabulary and a length of {length}",
        "64 tokens of vocabulary and a length of 512",
    )
    assert error == f"the weight file has {found}, doge_export.json {said}: they are not of one export"
