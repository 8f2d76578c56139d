"""The native decoder in WebAssembly, under Node: its answers are those of `doge-export generate`.

pytest -m slow tests/interop/test_wasm.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from doge_export.plugin import cpu_library
from doge_export.plugin.compile_wasm import MODULES
from doge_export.plugin.cpu_library import build_cpu
from doge_export.runtime import load

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "samples"
PROMPTS = ["Once upon a time", "The little dog was very sad. " * 12]
TOKENS, BEGINNING = 60, 16


def relaxed_option() -> list[str]:
    """The option by which this Node has relaxed SIMD; none from 22 on."""
    done = subprocess.run(["node", "--print", "process.versions.node"], capture_output=True, text=True, check=False)
    return ["--experimental-wasm-relaxed-simd"] if int(done.stdout.split(".")[0]) < 22 else []


@pytest.fixture(scope="module")
def answered(modules, script):
    """Runs wasm.mjs, see there; the JSON that it prints."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")

    def run(folder, request, *options):
        command = ["node", "--no-warnings", *options, script("wasm.mjs"), modules, folder, json.dumps(request)]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_modules_are_small_and_ask_for_nothing(modules):
    """150 KB is what issue 16 allows; a module without imports needs no system at all."""
    for name in MODULES:
        content = (modules / name).read_bytes()
        assert content[:8] == b"\0asm\1\0\0\0" and len(content) <= 150_000
        assert str(SAMPLES.parent).encode() not in content


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_greedy_answers(native, answered, precision):
    session = load(native, precision=precision, backend="native")
    expected = [session.generate(text, do_sample=False, max_new_tokens=TOKENS) for text in PROMPTS]
    prompts = [answer.prompt_token_ids for answer in expected]
    request = {"precision": precision, "prompts": prompts, "maxNewTokens": TOKENS}
    found = answered(native, request)
    assert found["answers"] == [answer.token_ids for answer in expected]
    # Relaxed SIMD, where the engine has it, or the reason why it was not taken. Its sums of codes are exact. It rounds
    # a float product and sum once, SIMD128 twice: in fp32 that is every sum, and only the beginning must be equal.
    relaxed = answered(native, request, *relaxed_option())
    equal = BEGINNING if relaxed["instructionSet"] == "wasmrelaxed" and precision == "fp32" else TOKENS
    assert [ids[:equal] for ids in relaxed["answers"]] == [ids[:equal] for ids in found["answers"]]
    assert relaxed["refused"] in (None, "relaxed SIMD computes wrongly here")


def test_chosen_tokens_follow_the_distribution(native, answered):
    """Of one step, drawn often: the frequencies are those of the logits, cut by topK and topP."""
    session = load(native, precision="fp32", backend="native")
    ids = [int(token) for token in session.tokenizer.encode(PROMPTS[0])]
    options = {"temperature": 0.8, "topK": 4, "topP": 0.9}
    found = answered(native, {"precision": "fp32", "draws": 2000, "prompts": [ids], **options})
    assert max(abs(found["drawn"][token] - share) for token, share in found["shares"].items()) < 0.04
    assert set(found["drawn"]) == set(found["shares"]) and len(found["shares"]) <= 4


def test_troubles_are_a_line(native, answered):
    for request, said in (
        ({"cut": 1000}, "a weight file cut short"),
        ({"prompts": [[5] * 300]}, "the prompt has 300 tokens, and this model holds 256: shorten it"),
        ({"prompts": [[100000]]}, "token 100000 is not in the vocabulary"),
    ):
        found = answered(native, {"precision": "int8", "maxNewTokens": 2, **request})
        assert said in found["error"] and "\n" not in found["error"]


def test_the_same_sources_give_the_same_modules(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path / "zig"))
    monkeypatch.setattr(cpu_library, "INSTALLED", tmp_path / "none")
    again = build_cpu(tmp_path / "again", target="wasm").path.parent
    assert digests(again) == digests(modules)


def test_cmake_makes_the_same_modules(modules, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    sources = SAMPLES.parent / "plugins" / "cpu"
    python = [f"-DDOGE_PYTHON={sys.executable}"] if find_spec("ziglang") else []
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={sources / 'cmake' / 'zig-wasm.cmake'}"
    subprocess.run(["cmake", "-S", sources, "-B", tmp_path, toolchain, *python], check=True)
    subprocess.run(["cmake", "--build", tmp_path], check=True)
    assert digests(tmp_path) == digests(modules)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MODULES]
