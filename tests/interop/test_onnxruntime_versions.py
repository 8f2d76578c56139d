"""The oldest onnxruntime that a portable folder declares runs it, with the tokens of the newest.

    pytest -m slow tests/interop/test_onnxruntime_versions.py

Each version gets an environment of its own, installed by pip.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from doge_export.package import read_manifest
from doge_export.runtime import load

pytestmark = pytest.mark.slow

PROMPT, TOKENS = [0, 5, 9, 100, 7], 12
SCRIPT = Path(__file__).with_name("plain_greedy.py")
RELEASES = {"1.18": ("onnxruntime==1.18.1", "numpy<2"), "1.22": ("onnxruntime==1.22.1", "numpy>=2")}
"""What pip installs for a version that graphs declare."""


def run(interpreter, file):
    command = [interpreter, SCRIPT, file, str(TOKENS), *map(str, PROMPT)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def expected(folder, precision):
    options = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": []}
    return load(folder, precision=precision).generate(PROMPT, **options).token_ids


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4", "q4f16"])
def test_the_declared_version_runs_it(folder, python, precision):
    manifest = read_manifest(folder)
    name = manifest.graph_of(precision)
    done = run(python(*RELEASES[manifest.graphs[name].onnxruntime]), folder / name)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == expected(folder, precision)


def test_another_version_computes_few_bits_in_float16(folder, python):
    """At accuracy level 4 onnxruntime 1.22 gave other numbers altogether."""
    name = read_manifest(folder).graph_of("q4f16")
    done = run(python(*RELEASES["1.22"]), folder / name)
    assert [int(word) for word in done.stdout.split()] == expected(folder, "q4f16")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_declared_version_runs_expanded_weights(expanded, python, precision):
    test_the_declared_version_runs_it(expanded, python, precision)


def test_eight_bits_need_the_newer_one(folder, python):
    """What is declared is not more than is needed."""
    done = run(python(*RELEASES["1.18"]), folder / read_manifest(folder).graph_of("int8"))
    assert done.returncode != 0 and "MatMulNBits" in done.stderr
