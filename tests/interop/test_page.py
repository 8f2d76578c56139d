"""The page of samples/browser, visited in headless Chromium.

pytest -m slow tests/interop/test_page.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.pipeline.onnx import export
from doge_export.runtime import load

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "samples"
TEXT = "Tell me a story about a dog."


@pytest.fixture(scope="module")
def visited(folder, node, script, tmp_path_factory):
    """Makes visits and returns what each saw, see page.mjs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    samples = tmp_path_factory.mktemp("samples")
    for name in ("browser", "javascript"):
        shutil.copytree(SAMPLES / name, samples / name, ignore=shutil.ignore_patterns("node_modules", "native"))
    packages = ("onnxruntime-web@^1.24.0", "@huggingface/tokenizers@^0.2.0", "@huggingface/jinja@^0.5.0")
    where = node(*packages, "playwright-core")
    (samples / "browser" / "node_modules").symlink_to(where / "node_modules")
    shutil.copy(script("page.mjs"), where)

    def visit(*visits):
        command = ["node", "page.mjs", chromium, samples / "browser", folder, *map(json.dumps, visits)]
        done = subprocess.run([*map(str, command)], cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert all(one["errors"] == [] for one in seen)
        return seen

    visit.samples = samples
    return visit


@pytest.fixture(scope="module")
def with_modules(visited, modules, tmp_path_factory):
    """`visited`, where the page has the native decoder's modules."""
    shutil.copytree(modules, visited.samples / "javascript" / "native", dirs_exist_ok=True)
    return visited


@pytest.fixture(scope="module")
def expected(folder):
    """The greedy answer in a precision."""

    def of(precision, tokens=256, folder=folder):
        session = load(folder, precision=precision)
        ids = session.tokenizer.encode_chat([{"role": "user", "content": TEXT}])
        return session.generate(ids, do_sample=False, max_new_tokens=tokens).text

    return of


def test_answers_of_every_precision(visited, expected):
    """In fp32 and fp16 to the last token; of few bits, whose kernels round otherwise in a browser, the beginning."""
    precisions = ("fp32", "fp16", "int8", "int4")
    seen = visited(*({"query": f"precision={precision}", "messages": [TEXT]} for precision in precisions))
    for precision, visit in zip(precisions, seen, strict=True):
        assert visit["said"][0].startswith(f"Ready: {precision} on the CPU")
        (answer,) = visit["answers"]
        if precision in ("fp32", "fp16"):
            assert answer == expected(precision)
        else:
            assert answer.startswith(expected(precision, tokens=16))


def test_a_visit_without_threads_and_one_without_network(visited, expected):
    alone, offline = visited({"isolation": False, "messages": [TEXT]}, {"messages": [TEXT], "again": "offline"})
    assert alone["answers"] == [expected("fp16")] and "1 thread" in alone["said"][0]
    assert offline["answers"] == [expected("fp16")] and len(offline["said"]) == 5


def test_expanded_weights_are_the_first_choice_of_onnxruntime(visited, expanded, expected):
    """They are multiplied in float32 here and in Python: answers are equal to the last token."""
    first, few = visited(
        {"folders": [str(expanded)], "messages": [TEXT]},
        {"folders": [str(expanded)], "query": "precision=int4", "messages": [TEXT]},
    )
    assert first["said"][0].startswith("Ready: int8 on the CPU")
    assert first["answers"] == [expected("int8", folder=expanded)]
    assert few["answers"] == [expected("int4", folder=expanded)]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_webgpu(visited, expected, precision):
    """On SwiftShader, WebGPU on a CPU: a second a token, and no 16-bit floats, so fp16 graphs ran on no WebGPU here."""
    flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
    query = f"device=webgpu&precision={precision}&maxNewTokens=8"
    (visit,) = visited({"flags": flags, "query": query, "messages": [TEXT]})
    assert visit["said"][0].startswith(f"Ready: {precision} on the GPU")
    assert visit["answers"] == [expected(precision, tokens=8)]


def test_an_answer_can_be_stopped(visited, expected):
    (visit,) = visited({"stop": TEXT})
    (answer,) = visit["answers"]
    assert 4 < len(answer) < len(expected("fp16")) and expected("fp16").startswith(answer)


def test_troubles_are_a_line(visited):
    visits = [
        ({"cut": "**/*.onnx"}, "is damaged or was cut off (7 bytes"),
        ({"broken": "**/doge_export.json"}, "cannot be reached: connect to the network"),
        ({"query": "precision=int7"}, "The folder has no int7 graph"),
        ({"query": "device=webgpu"}, "This browser has no WebGPU here: leave device=webgpu out"),
        ({"query": "device=tpu"}, "There is no device tpu: take wasm or webgpu"),
        ({"messages": ["word " * 300]}, "Too long: the prompt has "),
    ]
    for visit, (_, said) in zip(visited(*(visit for visit, _ in visits)), visits, strict=True):
        assert said in visit["said"][-1]
        assert visit["answers"] == []


def test_the_native_decoder_is_the_first_engine(with_modules, native, folder, expected, capsys):
    """Of a folder of target native, alone or beside a portable one; onnxruntime where it is asked for, or has to do."""
    alone, both, asked, few = with_modules(
        {"folders": [str(native)], "messages": [TEXT], "again": "offline"},
        {"folders": [str(folder), str(native)], "query": "precision=fp32", "isolation": False, "messages": [TEXT]},
        {"folders": [str(folder), str(native)], "query": "engine=onnxruntime"},
        {"folders": [str(native)], "query": "precision=int4", "messages": [TEXT]},
    )
    assert alone["said"][0].startswith("Ready: int8 on the CPU, native decoder with ")
    # The faster instruction set is taken, and SIMD128 rounds a float product and sum twice: the beginning is equal.
    assert alone["answers"][0].startswith(expected("int8", tokens=60, folder=native)) and len(alone["said"]) == 5
    with capsys.disabled():
        sys.stdout.write(f"\nusable after {alone['cold']:.0f} ms, {alone['warm']:.0f} ms from a warm cache\n")
    assert alone["warm"] < 2000, "usable within 2 s from a warm cache"
    assert both["said"][0].startswith("Ready: fp32 on the CPU, native") and both["answers"] == [expected("fp32")]
    assert asked["said"][0].startswith("Ready: fp16 on the CPU, ")
    # Rounding of few bits may differ by the engine's instructions: the beginning is equal.
    assert few["answers"][0].startswith(expected("int4", tokens=16, folder=native))


@pytest.fixture(scope="module")
def small(native_file, tmp_path_factory):
    """Doge of 20M in int4 for the native decoder, with the published tokenizer's size of vocabulary."""
    made = tmp_path_factory.mktemp("small")
    tool = SAMPLES / "benchmark" / "make_checkpoint.py"
    subprocess.run([sys.executable, tool, "20M", made / "checkpoint"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(native_file))
        export(
            str(made / "checkpoint"), made / "out", target="native", precisions=("int4",), validate=False, max_kl=1.0
        )
    return made / "out"


def test_the_download_of_the_native_decoder(with_modules, native, small, capsys):
    """Page, libraries and module with the weights of 20M in int4: below 8 MB uncompressed, but for the tokenizer."""
    (visit,) = with_modules({"folders": [str(native)], "query": "precision=int4", "messages": [TEXT]})
    packages = with_modules.samples / "browser" / "node_modules"
    places = {
        "/native/": None,
        "/lib/tokenizers/": packages / "@huggingface" / "tokenizers" / "dist",
        "/lib/jinja/": packages / "@huggingface" / "jinja" / "dist",
        "/javascript/": with_modules.samples / "javascript",
        "/": with_modules.samples / "browser" / "page",
    }
    sizes = {}
    for name, sent in visit["sent"].items():
        start = next(start for start in places if name.startswith(start))  # onnxruntime's would not be found
        if places[start]:
            sizes[name] = ((places[start] / (name.removeprefix(start) or "index.html")).stat().st_size, sent)
    whole, sent = (sum(each) for each in zip(*sizes.values(), strict=True))
    weights = (small / "onnx" / "model_q4.onnx_data").stat().st_size
    with capsys.disabled():
        sys.stdout.write(f"\n{whole} bytes, {sent} compressed, weights {weights}: {sizes}\n")
    assert sent < whole and whole + weights < 8_000_000


def test_troubles_of_the_native_decoder_are_a_line(with_modules, native, folder):
    visits = [
        ({"cut": "**/*.onnx_data"}, "is damaged or was cut off (7 bytes"),
        ({"broken": "**/doge_export.json"}, "cannot be reached: connect to the network"),
        ({"broken": "**/*.wasm"}, "wasm cannot be reached: connect to the network"),
        ({"query": "precision=int7"}, "The folder has no int7 graph"),
        ({"messages": ["word " * 300]}, "Too long: the prompt has "),
        ({"folders": [str(folder), str(native)], "broken": "**/doge_cpu*.wasm"}, "The native decoder did not start: "),
        ({"query": "device=webgpu"}, "doge_export.json is not there (404): is the model's folder served as model/?"),
    ]
    for visit, (_, said) in zip(
        with_modules(*({"folders": [str(native)], **visit} for visit, _ in visits)), visits, strict=True
    ):
        assert said in visit["said"][-1]
        assert visit["answers"] == []
