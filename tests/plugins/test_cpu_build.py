"""How the native decoder is compiled, found and put into wheels; real compilers run in slow tests alone."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from copied_hook import hook_in, initialized

from doge_export.errors import DogeExportError, RunFailed
from doge_export.plugin import compile_cpu, compile_wasm, cpu_library
from doge_export.plugin.cpp_compiler import CppCompiler, find_cpp_compiler
from doge_export.plugin.cpu_library import build_cpu, find_cpu_library
from doge_export.plugin.cpu_targets import CPU_TARGETS, library_name, universal
from doge_export.plugin.sources import native_hash
from doge_export.plugin.wheels import build_wheels
from doge_export.runtime.native import interface

HEADER = Path(__file__).parents[2] / "plugins" / "cpu" / "include" / "doge" / "cpu.h"
FAKE = CppCompiler(("fake-c++",), "fake-c++ 1.0")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiling writes a few bytes; the calls are noted. Nothing is installed, and the cache is empty."""
    calls = []

    def compile_to(sources, library, compiler, target=None, *, jobs=None):
        calls.append(target)
        library.write_bytes(b"library")

    for module in (cpu_library, compile_cpu):
        monkeypatch.setattr(module, "compile_cpu", compile_to)
    monkeypatch.setattr(cpu_library, "find_cpp_compiler", lambda named=None, zig=False: FAKE)
    monkeypatch.setattr(cpu_library, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DOGE_EXPORT_CPU_LIBRARY", raising=False)
    return calls


def test_a_build_is_kept_and_found(compiled):
    with pytest.raises(DogeExportError, match="plugin build --cpu"):
        find_cpu_library()
    built = build_cpu()
    assert not built.cached and build_cpu().cached and compiled == [None]
    assert find_cpu_library().path == built.path


def test_a_library_for_another_system_is_not_taken_for_this_ones(compiled):
    other = build_cpu(target="windows")
    assert other.path.name == "doge_cpu.dll" and compiled == ["windows"]
    build_cpu(target="aarch64-linux")
    with pytest.raises(DogeExportError, match="not compiled"):
        find_cpu_library()


def test_an_installed_library_of_other_sources_is_told_in_one_line(compiled, tmp_path):
    build = build_cpu(tmp_path / "installed")
    shutil.rmtree(tmp_path / "cache")
    assert find_cpu_library().path == build.path
    facts = json.loads((tmp_path / "installed" / "build.json").read_text())
    for change in ({"version": "0.0.1"}, {"source_hash": "0" * 64}):
        (tmp_path / "installed" / "build.json").write_text(json.dumps(facts | change))
        with pytest.raises(DogeExportError, match="is of other sources than this doge-export") as caught:
            find_cpu_library()
        assert "\n" not in str(caught.value)


def test_a_named_library(monkeypatch, tmp_path):
    monkeypatch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(DogeExportError, match=r"DOGE_EXPORT_CPU_LIBRARY is .*none\.so: there is no such file"):
        find_cpu_library()


def test_compilers_are_told(monkeypatch):
    with pytest.raises(DogeExportError, match="--cxx is no-such-compiler: no C\\+\\+ compiler there"):
        find_cpp_compiler("no-such-compiler")
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(DogeExportError, match="the environment variable CXX is no-such-compiler"):
        find_cpp_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DogeExportError, match=r"no C\+\+ compiler: install .* pip install ziglang"):
        find_cpp_compiler()


def test_an_error_of_the_compiler_is_one_line(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: this is wrong' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(RunFailed, match=r"does not compile by mine: x\.cpp:1: error: this is wrong"):
        compile_cpu.compile_cpu(
            cpu_library.cpu_sources(), tmp_path / "out", CppCompiler((str(compiler),), "mine"), jobs=1
        )


def test_kernels_that_the_compiler_does_not_know_are_named(tmp_path, capfd):
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *-mavx512vnni*) exit 1;; esac\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    out = tmp_path / "out"
    compile_cpu.compile_cpu(
        cpu_library.cpu_sources(), out, CppCompiler((str(compiler),), "mine"), "x86_64-linux", jobs=1
    )
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mine refuses -mavx2 ") and line.endswith("the library has no kernels of isa_avx512vnni")


def test_two_processors_in_one_file():
    joined = universal({"x86_64": b"first", "aarch64": b"second"})
    assert struct.unpack(">II", joined[:8]) == (0xCAFEBABE, 2)
    for number, content in enumerate((b"first", b"second")):
        _, _, at, size, page = struct.unpack(">5I", joined[8 + 20 * number : 28 + 20 * number])
        assert joined[at : at + size] == content and at % 2**page == 0


def test_webassembly_is_two_modules_of_the_recipe(compiled, monkeypatch, tmp_path):
    """A compiler that notes its calls: every file once, the table of relaxed SIMD twice, and two links."""
    log = tmp_path / "calls"
    compiler = tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho module > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(
        cpu_library, "find_cpp_compiler", lambda named=None, zig=False: CppCompiler((str(compiler),), "mine", zig)
    )
    built = build_cpu(tmp_path / "out", target="wasm", jobs=1)
    assert sorted(path.name for path in built.path.parent.iterdir()) == sorted([*compile_wasm.MODULES, "build.json"])
    recipe = json.loads((cpu_library.cpu_sources() / "cpu" / "sources.json").read_text())
    assert tuple(recipe["wasm"]["modules"]) == compile_wasm.MODULES
    calls = log.read_text().splitlines()
    units = [call for call in calls if " -c " in call]
    assert len(units) == len(recipe["files"]) + len(recipe["wasm"]["files"]) + 1 and len(calls) == len(units) + 2
    assert all("-target wasm32-wasi" in call for call in calls)
    relaxed = [call for call in units if "isa_wasmrelaxed" in call]
    assert ["-mrelaxed-simd" in call for call in relaxed] == [True, False]
    exports = {f"doge_cpu_{name}" for name in recipe["wasm"]["exports"]}
    assert exports - {"doge_cpu_wasm_self_test"} <= marked()
    with pytest.raises(DogeExportError, match="not compiled"):
        find_cpu_library()


def test_modules_that_the_install_brought_need_no_compiler(compiled, monkeypatch, tmp_path):
    brought = tmp_path / "installed" / "wasm"
    brought.mkdir(parents=True)
    for name in compile_wasm.MODULES:
        (brought / name).write_bytes(b"module")
    facts = compile_cpu.describe_build(native_hash(cpu_library.cpu_sources()), "wasm", "zig")

    def no_compiler(named=None, zig=False):
        raise DogeExportError("no compiler")

    monkeypatch.setattr(cpu_library, "find_cpp_compiler", no_compiler)
    (brought / "build.json").write_text(json.dumps(facts))
    built = build_cpu(tmp_path / "out", target="wasm")
    assert built.cached and built.path.read_bytes() == b"module"
    assert sorted(path.name for path in built.path.parent.iterdir()) == ["build.json", *compile_wasm.MODULES]
    (brought / "build.json").write_text(json.dumps(facts | {"source_hash": "0" * 64}))
    with pytest.raises(DogeExportError, match="no compiler"):
        build_cpu(tmp_path / "other", target="wasm")


@pytest.fixture
def hook(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr("doge_export.plugin.cpp_compiler.find_zig", lambda: None)
    return hook_in(tmp_path)


def test_a_wheel_with_the_library_is_tagged(hook, monkeypatch):
    monkeypatch.setattr("doge_export.plugin.cpp_compiler.find_cpp_compiler", lambda named=None, zig=False: FAKE)
    data = initialized(hook[0])
    assert sorted(data["force_include"].values()) == [
        "doge_export/_native/build.json",
        f"doge_export/_native/{library_name()}",
    ]
    assert not data["pure_python"] and data["tag"].startswith("py3-none-") and "any" not in data["tag"]
    monkeypatch.setenv("DOGE_EXPORT_CPU_TARGET", "macos")
    assert initialized(hook[0])["tag"] == "py3-none-macosx_11_0_universal2"


def test_an_editable_install_keeps_it_in_the_checkout(hook, monkeypatch, tmp_path):
    monkeypatch.setattr("doge_export.plugin.cpp_compiler.find_cpp_compiler", lambda named=None, zig=False: FAKE)
    data = initialized(hook[0], "editable")
    assert data["pure_python"] and not data["force_include"]
    assert (tmp_path / "root" / "doge_export" / "_native" / library_name()).read_bytes() == b"library"


def test_an_install_never_fails_for_it(hook, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    data = initialized(hook[0])
    assert data["pure_python"] and "tag" not in data
    (line,) = hook[1]
    assert "without the native decoder (the environment variable CXX is no-such-compiler" in line
    monkeypatch.setenv("DOGE_EXPORT_CPU", "0")
    initialized(hook[0])
    assert "is left out, as DOGE_EXPORT_CPU says" in hook[1][1]


FORMATS = {
    "x86_64-linux": (b"\x7fELF", 62),
    "aarch64-linux": (b"\x7fELF", 183),
    "macos": (b"\xca\xfe\xba\xbe", None),
    "windows": (b"MZ", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", CPU_TARGETS)
def test_a_wheel_for_every_system(target, tmp_path):
    if not shutil.which("zig") and subprocess.run([sys.executable, "-c", "import ziglang"], check=False).returncode:
        pytest.skip("zig is not installed: pip install ziglang")
    (wheel,) = build_wheels(tmp_path, (target,))
    assert CPU_TARGETS[target].wheel in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"doge_export/_native/{CPU_TARGETS[target].file}")
        for name in compile_wasm.MODULES:
            assert archive.read(f"doge_export/_native/wasm/{name}").startswith(b"\0asm")
    magic, processor = FORMATS[target]
    assert content.startswith(magic)
    assert processor is None or struct.unpack("<H", content[18:20])[0] == processor
    assert b"RegisterCustomOps" in content and b"doge_cpu_run" in content
    best = b"neondot" if "aarch64" in target else b"avx512vnni"
    assert best in content
    if target == "windows":
        assert exported(content) == marked() | {"RegisterCustomOps"}


def test_a_windows_library_exports_every_function_that_is_called():
    """Visibility says nothing there: what the header does not mark is not in the library's table."""
    called = re.findall(r'^ +"(\w+)": \(', Path(interface.__file__).read_text(), re.MULTILINE)
    assert len(called) > 15 and {f"doge_cpu_{name}" for name in ["interface", *called]} <= marked()
    assert marked() == set(re.findall(r"^\w.*?\b(doge_cpu_\w+)\(", HEADER.read_text(), re.MULTILINE))


def marked() -> set[str]:
    """Functions that doge/cpu.h marks as exported."""
    return set(re.findall(r"^DOGE_CPU_API .*?(doge_cpu_\w+)\(", HEADER.read_text(), re.MULTILINE))


def exported(dll: bytes) -> set[str]:
    """Names that a 64-bit Windows library exports, by its table of exports."""
    (start,) = struct.unpack_from("<I", dll, 0x3C)
    sections, optional = struct.unpack_from("<H12xH", dll, start + 6)
    table = [struct.unpack_from("<8xIIII", dll, start + 24 + optional + 40 * i) for i in range(sections)]

    def place(address: int) -> int:
        return next(address - at + raw for size, at, _, raw in table if at <= address < at + size)

    (exports,) = struct.unpack_from("<I", dll, start + 24 + 112)
    count, _, names = struct.unpack_from("<III", dll, place(exports) + 24)
    starts = [place(at) for at in struct.unpack_from(f"<{count}I", dll, place(names))]
    return {dll[at : dll.index(b"\0", at)].decode() for at in starts}
