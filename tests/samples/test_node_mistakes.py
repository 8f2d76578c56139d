"""Mistakes with the programs for Node are a line and exit code 2; no package of theirs is needed for it.

Their answers: tests/interop/test_node_sample.py and test_page.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
OTHER = (
    b"\0asm\1\0\0\0"
    + bytes([1, 5, 1, 96, 0, 1, 127, 3, 2, 1, 0])  # a function of type () -> i32
    + bytes([7, 22, 1, 18, *b"doge_cpu_interface", 0, 0])
    + bytes([10, 6, 1, 4, 0, 65, 1, 11])
)
"""A module whose doge_cpu_interface returns 1, that is, of another version."""

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A copy without packages and modules."""
    copy = tmp_path_factory.mktemp("samples")
    for name in ("node", "javascript", "browser"):
        shutil.copytree(SAMPLES / name, copy / name, ignore=shutil.ignore_patterns("node_modules", "*.wasm"))
    return copy


@pytest.fixture
def folder(tmp_path):
    """A folder of a target, with weights of target native."""

    def of(target):
        manifest = {"target": target, "graphs": {"onnx/model.onnx": {"precision": "fp32"}}, "files": {}}
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "model.onnx_data").write_bytes(bytes(192))
        (tmp_path / "doge_export.json").write_text(json.dumps(manifest))
        return tmp_path

    return of


def mistake(program, *arguments):
    command = ["node", program, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("program", ["node/generate.mjs", "browser/serve.mjs", "javascript/measure.mjs"])
def test_an_unknown_option(samples, program):
    assert "Unknown option '--foo'" in mistake(samples / program, "--foo")


def test_a_port_that_is_none(samples, folder):
    assert "65536" in mistake(samples / "browser" / "serve.mjs", folder("native"), "--port", "70000")


def test_an_address_that_is_malformed_is_answered(samples, folder):
    """The server goes on: it answers the next one."""
    script = """
        const { pageServer } = await import(process.argv[1]);
        const server = pageServer(process.argv[2]).listen(0, "127.0.0.1", async () => {
          const answers = [];
          for (const name of ["%zz", "none", "%2e%2e/serve.mjs", "page.css"]) {
            answers.push((await fetch(`http://127.0.0.1:${server.address().port}/${name}`)).status);
          }
          console.log(answers.join());
          server.closeAllConnections();
          server.close();
        });
    """
    program = (samples / "browser" / "serve.mjs").as_uri()
    command = ["node", "--input-type=module", "--eval", script, program, str(folder("native"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("400,404,404,200\n", "")


def test_what_cannot_be_measured(samples, folder):
    program = samples / "javascript" / "measure.mjs"
    assert "give folders of a model" in mistake(program)
    assert "--rounds is none: give a whole number" in mistake(program, "--rounds", "none", "a")
    assert "give --browser, too" in mistake(program, "--gguf", "a.gguf", "a")
    assert "a is no exported folder (ENOENT)" in mistake(program, "a")
    line = mistake(program, folder("native"))
    assert "'onnxruntime-web'" in line and line.endswith(": npm install --prefix samples/browser")


def test_a_manifest_without_graphs(samples, tmp_path):
    (tmp_path / "doge_export.json").write_text("{}")
    assert "is no exported folder" in mistake(samples / "node" / "generate.mjs", tmp_path, "a")


def test_a_package_that_is_not_installed(samples, folder):
    line = mistake(samples / "node" / "generate.mjs", folder("portable"), "a")
    assert "'onnxruntime-node'" in line and line.endswith(": npm install --prefix samples/node")


def test_modules_that_are_not_built_and_of_another_version(samples, folder):
    program, made, modules = samples / "node" / "generate.mjs", folder("native"), samples / "javascript" / "native"
    built = "doge-export plugin build --cpu --target wasm"
    line = mistake(program, made, "a")
    assert ".wasm: " in line and built in line
    modules.mkdir(exist_ok=True)
    for name in ("doge_cpu.wasm", "doge_cpu_relaxed.wasm"):
        (modules / name).write_bytes(OTHER)
    line = mistake(program, made, "a")
    assert "of another version" in line and built in line
    for name in ("doge_cpu.wasm", "doge_cpu_relaxed.wasm"):
        (modules / name).write_bytes(OTHER[:20])
    assert "the module is damaged" in mistake(program, made, "a")
    (made / "onnx" / "model.onnx_data").unlink()
    assert mistake(program, made, "a").endswith("model.onnx_data")
