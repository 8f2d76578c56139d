"""samples/node answers as our own runtime does, and tells its user's mistakes in a line.

pytest -m slow tests/interop/test_node_sample.py
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from doge_export.pipeline.onnx import export
from doge_export.runtime import load

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "samples"
TEXT, TOKENS = "Once upon a time", 40


@pytest.fixture(scope="module")
def sample(node, tmp_path_factory):
    """A copy of the sample with its packages."""
    copy = tmp_path_factory.mktemp("samples")
    for name in ("node", "javascript"):
        shutil.copytree(SAMPLES / name, copy / name, ignore=shutil.ignore_patterns("node_modules"))
    packages = node("onnxruntime-node@^1.24.0", "@huggingface/tokenizers@^0.2.0", "@huggingface/jinja@^0.5.0")
    (copy / "node" / "node_modules").symlink_to(packages / "node_modules")
    return copy / "node"


def answer(sample, *arguments):
    command = ["node", "generate.mjs", *map(str, arguments), "--max-new-tokens", str(TOKENS)]
    return subprocess.run(command, cwd=sample, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_every_precision(folder, sample, precision):
    expected = load(folder, precision=precision).generate(TEXT, do_sample=False, max_new_tokens=TOKENS).text
    done = answer(sample, folder, TEXT, "--precision", precision)
    assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


def test_a_conversation(folder, sample):
    session = load(folder)
    ids = session.tokenizer.encode_chat([{"role": "user", "content": TEXT}])
    expected = session.generate(ids, do_sample=False, max_new_tokens=TOKENS).text
    assert answer(sample, folder, TEXT, "--chat").stdout == expected + "\n"


def test_experts_that_mix_tokens_read_a_prompt_whole(sample, tmp_path):
    export("doge-nano-moe", tmp_path / "moe", target="portable", validate=False)
    text = "Once upon a time, there was a little boy named Jack. " * 5
    expected = load(tmp_path / "moe").generate(text, do_sample=False, max_new_tokens=TOKENS).text
    assert answer(sample, tmp_path / "moe", text).stdout == expected + "\n"


def test_mistakes_are_one_line(folder, sample, tmp_path):
    for arguments, said in (
        ([tmp_path, TEXT], "is no exported folder"),
        ([folder, TEXT, "--precision", "int7"], "has no int7 graph"),
        ([folder, "word " * 300], "the prompt has "),
        ([folder], "give a folder and a prompt"),
    ):
        done = answer(sample, *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr
