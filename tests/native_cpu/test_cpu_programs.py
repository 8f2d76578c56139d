"""The C++ tests of plugins/cpu: every instruction set, natively, emulated or by qemu and Node, and the sanitizers."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from doge_export.plugin.cpu_library import cpu_sources

pytestmark = pytest.mark.slow

QEMU = ["qemu-aarch64", "qemu-aarch64-static"]


def _run(*command: str | Path, timeout: float = 1800) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture
def program(tmp_path) -> Callable[..., Path]:
    """Compiles the library with one of its test programs; the program's file."""

    def build(
        name: str,
        compiler: Sequence[str] = ("g++",),
        machine: str = platform.machine(),
        flags: Sequence[str] = (),
        own: dict[str, Sequence[str]] | None = None,
        link: Sequence[str] = ("-pthread",),
    ) -> Path:
        if shutil.which(compiler[0]) is None:
            pytest.skip(f"{compiler[0]} is not installed")
        sources = cpu_sources() / "cpu"
        recipe = json.loads((sources / "sources.json").read_text())
        include = [f"-I{sources / folder}" for folder in [*recipe["include"], "tests"]]
        files = [*recipe["files"], {"path": f"tests/{name}.cpp"}]
        objects = []
        for file in files:
            objects.append(tmp_path / (Path(file["path"]).stem + ".o"))
            special = (own or {}).get(Path(file["path"]).stem)
            given = file.get(machine, []) if special is None else special
            options = [f"-std={recipe['standard']}", "-O1", "-g", "-ffp-contract=off", *include, *flags, *given]
            _run(*compiler, *options, "-c", sources / file["path"], "-o", objects[-1])
        out = tmp_path / f"{name}.wasm" if machine == "wasm32" else tmp_path / name
        _run(*compiler, *flags, *objects, *link, "-o", out)
        return out

    return build


def _zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("pip install ziglang")
    import sys

    return [sys.executable, "-m", "ziglang", "c++"]


def test_kernels_of_this_machine(program):
    assert "0 failures" in _run(program("kernels_test"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 alone")
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("avx512vnni", ['-DDOGE_AVX512_EMULATED="avx512_emulated.h"']),
        ("avxvnni", ["-mavx2", "-mfma", "-mf16c", "-D__AVXVNNI__", "-include", "avxvnni_emulated.h"]),
    ],
)
def test_kernels_that_this_machine_may_not_have(program, name, flags):
    """The file for an instruction set, over intrinsics that are written out; see plugins/cpu/tests."""
    assert "0 failures" in _run(program("kernels_test", own={f"isa_{name}": flags}), name)


def test_kernels_of_arm(program):
    qemu = next((found for found in map(shutil.which, [os.environ.get("DOGE_QEMU", ""), *QEMU]) if found), None)
    if qemu is None:
        pytest.skip("qemu-aarch64 is not installed; DOGE_QEMU names it")
    built = program("kernels_test", [*_zig(), "-target", "aarch64-linux-musl"], "aarch64", link=["-static"])
    assert "neondot" in (output := _run(qemu, built)) and "0 failures" in output


@pytest.mark.parametrize("name", ["wasm", "wasmrelaxed"])
def test_kernels_of_webassembly(program, tmp_path, name):
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    relaxed = ["-mrelaxed-simd"] if name == "wasmrelaxed" else []
    compiler = [
        *_zig(),
        "-target",
        "wasm32-wasi",
        "-DDOGE_CPU_ONE_THREAD",
        "-DDOGE_CPU_SMALL",
        "-fno-exceptions",
        "-msimd128",
    ]
    own = {"isa_wasm": [], "isa_wasmrelaxed": relaxed}
    module = program("kernels_test", compiler, "wasm32", own=own, link=[])
    script = tmp_path / "run.mjs"
    script.write_text(
        "import {WASI} from 'node:wasi'; import fs from 'node:fs';\n"
        f"const wasi = new WASI({{version: 'preview1', args: ['kernels_test', '{name}'], returnOnExit: true}});\n"
        f"const module = await WebAssembly.compile(fs.readFileSync({str(module)!r}));\n"
        "const instance = await WebAssembly.instantiate(module, wasi.getImportObject());\n"
        "process.exitCode = wasi.start(instance);\n"
    )
    major = int(_run(node, "--print", "process.versions.node").split(".")[0])
    options = ["--experimental-wasm-relaxed-simd"] if relaxed and major < 22 else []
    assert f"{name}: " in (output := _run(node, "--no-warnings", *options, script)) and "0 failures" in output


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("name", ["kernels_test", "stack_test"])
def test_sanitizers_find_nothing(program, sanitizer, name):
    if sanitizer == "thread" and name == "kernels_test":
        pytest.skip("one thread")
    built = program(name, flags=[f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"])
    _run(built)
