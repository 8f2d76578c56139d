"""The oldest onnxruntime that a portable folder declares runs it, with the tokens of the newest.

    pytest -m slow tests/interop/test_onnxruntime_versions.py

Each version gets an environment of its own, installed by pip.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.package import read_manifest
from doge_export.pipeline.onnx import export
from doge_export.runtime import load

pytestmark = pytest.mark.slow

PROMPT, TOKENS = [0, 5, 9, 100, 7], 12
SCRIPT = Path(__file__).with_name("plain_greedy.py")
RELEASES = {"1.18": ("onnxruntime==1.18.1", "numpy<2"), "1.22": ("onnxruntime==1.22.1", "numpy>=2")}
"""What pip installs for a version that graphs declare."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable") / "out"
    precisions = ("int8", "int4", "fp16")
    export("doge-nano", folder, target="portable", precisions=precisions, validate=False)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with a version of onnxruntime."""
    made = {}

    def of(version):
        if version not in made:
            environment = tmp_path_factory.mktemp("onnxruntime") / version
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            made[version] = environment / "bin" / "python"
            command = [made[version], "-m", "pip", "install", "-q", "--disable-pip-version-check", *RELEASES[version]]
            if subprocess.run(command, check=False).returncode != 0:
                pytest.skip(f"{RELEASES[version][0]} cannot be installed here")
        return made[version]

    return of


def run(interpreter, file):
    command = [interpreter, SCRIPT, file, str(TOKENS), *map(str, PROMPT)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_declared_version_runs_it(folder, python, precision):
    manifest = read_manifest(folder)
    name = manifest.graph_of(precision)
    done = run(python(manifest.graphs[name].onnxruntime), folder / name)
    assert done.returncode == 0, done.stderr
    options = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": []}
    expected = load(folder, precision=precision).generate(PROMPT, **options).token_ids
    assert [int(word) for word in done.stdout.split()] == expected


def test_eight_bits_need_the_newer_one(folder, python):
    """What is declared is not more than is needed."""
    done = run(python("1.18"), folder / read_manifest(folder).graph_of("int8"))
    assert done.returncode != 0 and "MatMulNBits" in done.stderr
