"""An install goes on whatever the compiler does, and leaves nothing behind; wheels say what they are."""

from __future__ import annotations

import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from copied_hook import hook_in, initialized

from doge_export.errors import DogeExportError, RunFailed
from doge_export.plugin import compile_cpu, compile_wasm, cpp_compiler, wheels
from doge_export.plugin.cpp_compiler import CppCompiler, find_cpp_compiler
from doge_export.plugin.cpu_targets import CPU_TARGETS


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """The folder of temporary files, for the test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Make a C++ compiler of a shell script, which is asked for its version first."""

    def make(script):
        file = tmp_path / "c++"
        file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "mine 1.0" && exit\n{script}\n')
        file.chmod(0o755)
        monkeypatch.setenv("CXX", str(file))

    return make


@pytest.fixture
def hook(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_compiler, "find_zig", lambda: None)
    return hook_in(tmp_path)


COMPILERS = {
    "hangs": ("sleep 30", "has not ended after 1 s"),
    "is killed": ("kill -9 $$", "does not compile by mine 1.0"),
    "refuses": ("echo 'error: no'; exit 1", "does not compile by mine 1.0: error: no"),
    "writes nothing": ("exit 0", "No such file"),
}


@pytest.mark.parametrize(("script", "message"), COMPILERS.values(), ids=COMPILERS)
@pytest.mark.parametrize("version", ["standard", "editable"])
def test_an_install_goes_on_without_a_compiler_that_works(
    hook, compiler, temporary, monkeypatch, script, message, version
):
    compiler(script)
    monkeypatch.setattr(compile_cpu, "LONGEST", 1)
    started = time.monotonic()
    data = initialized(hook[0], version)
    assert time.monotonic() - started < 15
    assert data == {"force_include": {}, "pure_python": True}
    (line,) = hook[1]
    assert "without the native decoder (" in line and message in line and "\n" not in line
    assert not list(temporary.iterdir())


def test_a_tree_that_cannot_be_written(hook, compiler, tmp_path):
    compiler('while [ "$1" != -o ]; do shift; done; : > "$2"')
    (tmp_path / "root" / "doge_export" / "_native").write_text("in the way")
    assert initialized(hook[0], "editable")["pure_python"]
    assert "without the native decoder (" in hook[1][0]


def test_nothing_is_left_behind_when_the_wheel_is_written(hook, compiler, temporary):
    compiler('while [ "$1" != -o ]; do shift; done; echo library > "$2"')
    data = initialized(hook[0])
    assert all(Path(file).is_file() for file in data["force_include"]) and len(data["force_include"]) == 2
    hook[0].finalize("standard", data, "a.whl")
    assert not list(temporary.iterdir())


def test_modules_come_along_where_zig_is_at_hand(hook, compiler, temporary, monkeypatch):
    """In a folder of their own; that they do not compile fails a wheel for a named system alone."""
    compiler('while [ "$1" != -o ]; do shift; done; echo library > "$2"')
    monkeypatch.setattr(cpp_compiler, "find_zig", lambda: CppCompiler(("zig", "c++"), "zig 1", is_zig=True))
    monkeypatch.setattr(
        compile_wasm, "compile_wasm", lambda sources, folder, zig: [(folder / n).touch() for n in compile_wasm.MODULES]
    )
    data = initialized(hook[0])
    names = {name.removeprefix("doge_export/_native/") for name in data["force_include"].values()}
    assert names >= {"build.json", "wasm/build.json", *(f"wasm/{name}" for name in compile_wasm.MODULES)}
    hook[0].finalize("standard", data, "a.whl")

    def fails(*_):
        raise RunFailed("wasm.cpp does not compile")

    monkeypatch.setattr(compile_wasm, "compile_wasm", fails)
    assert len(initialized(hook[0])["force_include"]) == 2
    assert hook[1][-1] == "doge-export: without the modules for pages (wasm.cpp does not compile)"
    hook[0].finalize("standard", data, "a.whl")
    assert not list(temporary.iterdir())


def test_an_open_quotation_mark_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(DogeExportError, match=r"CXX is g\+\+ ': no C\+\+ compiler there"):
        find_cpp_compiler()


@pytest.fixture
def built(monkeypatch):
    """Building writes an empty wheel of the target's name."""

    def run(command, *, env, **_):
        target = CPU_TARGETS.get(env["DOGE_EXPORT_CPU_TARGET"])
        name = f"doge_export-0-py3-none-{target.wheel if target else 'any'}.whl"
        with zipfile.ZipFile(Path(command[-1]) / name, "w"):
            return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(wheels.subprocess, "run", run)


def test_wheels_are_named_also_where_older_ones_are_replaced(built, tmp_path, capsys):
    for _ in range(2):
        assert wheels.main([str(tmp_path / "new" / "dist")]) == 0
        named = capsys.readouterr().out.split()
        assert len(named) == len(CPU_TARGETS) + 1 and all(Path(name).is_file() for name in named)
    assert sorted(map(str, (tmp_path / "new" / "dist").iterdir())) == sorted(named)


def test_a_wheel_that_cannot_be_built_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(RunFailed):
        wheels.build_wheels(tmp_path)
    assert wheels.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
