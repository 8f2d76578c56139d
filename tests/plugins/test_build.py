"""`doge-export plugin`: tools are found or missed in one line, builds are kept, failures leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from plugin_tree import shared_objects

from doge_export.cli import main
from doge_export.errors import DogeExportError, RunFailed
from doge_export.plugin import architectures as gpus
from doge_export.plugin import build as building
from doge_export.plugin import sources as source_folder
from doge_export.plugin import toolchain as tools
from doge_export.plugin.library import KernelLibrary, load

ROOT = Path(__file__).parents[2]


def run(*arguments: object):
    return CliRunner().invoke(main, ["plugin", *map(str, arguments)], catch_exceptions=False, prog_name="doge-export")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(folder))
    return folder / "plugins"


@pytest.fixture(scope="module")
def built(toolchain, tmp_path_factory):
    """A cache with a build for the CPU; what other tests have compiled of the same sources is not compiled again."""
    folder = tmp_path_factory.mktemp("built")
    with shared_objects(toolchain), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOGE_EXPORT_CACHE", str(folder))
        result = run("build", "--no-cuda", "--json")
    assert result.exit_code == 0, result.stderr
    return folder, result


@pytest.fixture
def kept(built, monkeypatch):
    """That cache, in use."""
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(built[0]))
    return built[0] / "plugins"


@pytest.mark.parametrize("name", ["build", "info"])
def test_every_option_has_help(name):
    command = main.get_command(click.Context(main), "plugin").commands[name]
    assert command.help
    assert all(option.help for option in command.params)
    assert run(name, "-q", "--help").exit_code == 0


def test_a_build_names_its_libraries(built):
    facts = json.loads(built[1].stdout)
    assert facts["cached"] is False
    assert facts["architectures"] == []
    assert KernelLibrary(facts["libraries"][building.KERNELS]).architectures == ()
    assert "compiling the plugin for the CPU only" in built[1].stderr
    assert "parts: the CPU reference" in built[1].stderr
    assert re.search(r"^compiling the plugin: (2[5-9]|[3-9]\d|100) %$", built[1].stderr, re.MULTILINE)


def test_a_build_without_a_gpu_says_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "here", tuple)
    toolchain = building.find_toolchain()
    settings = building.CompileSettings(gpus.default())
    first, parts, why = building._announcement(settings, toolchain, tmp_path)
    assert first.startswith("compiling the plugin for 89, once")
    assert parts == "parts: the CPU reference, CUDA kernels, the TensorRT plugin"
    assert why.startswith("no GPU was found here: 89 is the RTX 4090") and "--compute-capability" in why
    settings = building.CompileSettings(("89", "90"))
    assert len([*building._announcement(settings, toolchain, tmp_path)]) == 2


def test_a_build_leaves_libraries_and_nothing_else(built):
    left = [path.name for path in (built[0] / "plugins").iterdir()]
    entry = next(path for path in (built[0] / "plugins").iterdir() if path.is_dir())
    assert sorted(left) == sorted([entry.name, f"{entry.name}.log"])
    facts = json.loads((entry / "build.json").read_text())
    assert sorted(path.name for path in entry.iterdir()) == sorted(["build.json", *facts["libraries"]])


def test_a_build_is_kept(kept):
    result = run("build", "--no-cuda")
    assert result.exit_code == 0
    assert "compiling" not in result.stderr
    *paths, summary = result.stdout.splitlines()
    assert summary == "without kernels"
    assert all(Path(path).is_relative_to(kept) and Path(path).is_file() for path in paths)
    assert json.loads(run("build", "--no-cuda", "--json").stdout)["cached"] is True


@pytest.mark.parametrize("damage", [Path.unlink, lambda library: library.write_bytes(library.read_bytes()[:-1])])
def test_a_damaged_build_is_made_again(built, cache, monkeypatch, damage):
    shutil.copytree(built[0] / "plugins", cache)
    library = next(cache.glob(f"*/{building.KERNELS}"))
    facts = json.loads((library.parent / "build.json").read_text())
    damage(library)
    assert building.cached_builds() == []
    made = []
    monkeypatch.setattr(building, "_compile_into", lambda entry, *rest: made.append(entry) or facts)
    assert json.loads(run("build", "--no-cuda", "--json").stdout)["cached"] is False
    assert made == [library.parent]


def test_output_is_a_copy(kept, tmp_path):
    result = json.loads(run("build", "--no-cuda", "--output", tmp_path / "out", "--json").stdout)
    assert Path(result["libraries"][building.KERNELS]).parent == tmp_path / "out"
    KernelLibrary(tmp_path / "out" / building.KERNELS)
    again = run("build", "--no-cuda", "--output", tmp_path / "out")
    assert again.exit_code == 2
    assert "is not empty" in again.stderr
    assert run("build", "--no-cuda", "--output", tmp_path / "out", "--force").exit_code == 0


def test_load_takes_the_library_that_is_named(kept, monkeypatch, tmp_path):
    path = next(kept.glob(f"*/{building.KERNELS}"))
    monkeypatch.setenv("DOGE_KERNELS_LIBRARY", str(path))
    assert load().path == path
    (tmp_path / "no.so").write_text("no library")
    with pytest.raises(DogeExportError, match=r"no\.so is not a libdoge_kernels_c\.so .*doge-export plugin build"):
        load(tmp_path / "no.so")


def test_info(kept):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["sources"] == str(source_folder.plugin_sources())
    assert facts["tools"]["cmake"]["path"]
    assert [set(build["libraries"]) & {building.KERNELS} for build in facts["builds"]] == [{building.KERNELS}]
    assert f"built: {facts['builds'][0]['folder']}  no kernels" in run("info").stdout


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """Nothing is where it usually is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in (
        "CMAKE",
        "CXX",
        "CUDACXX",
        "CUDA_HOME",
        "CUDA_PATH",
        "DOGE_TRT_INCLUDE_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tools, "_cuda_homes", list)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_what_is_missing_is_said_in_one_line(bare_machine, cache):
    result = run("build")
    assert result.exit_code == 2
    advice = "install CMake 3.22 or newer (pip install cmake), or name it with --cmake or CMAKE"
    assert result.stderr == f"doge-export: error: no cmake: {advice}\n"
    program(bare_machine / "cmake", "cmake version 3.25.1")
    result = run("build")
    assert result.exit_code == 2
    assert result.stderr.startswith("doge-export: error: no C++ compiler: install g++")
    assert not cache.exists()


def test_programs_that_are_too_old_are_not_taken(bare_machine):
    program(bare_machine / "cmake", "cmake version 3.10.2")
    program(bare_machine / "nvcc", "Cuda compilation tools, release 11.5, V11.5.119")
    found = tools.find_toolchain()
    assert found.cmake.missing
    assert found.nvcc.missing.startswith("no nvcc: the CUDA kernels are left out; install the CUDA toolkit")
    with pytest.raises(DogeExportError, match=r"--nvcc is nvcc: nvcc 11\.5; 11\.8 or newer is needed"):
        tools.find_toolchain(nvcc="nvcc")


def test_nvcc_of_pips_wheels_comes_before_the_machines(tmp_path, monkeypatch):
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    for cuda, says in (("cu12", "12.9"), ("cu13", "13.5")):
        (tmp_path / "nvidia" / cuda / "bin").mkdir(parents=True)
        # With no PATH, the shell has no echo but its own.
        program(tmp_path / "nvidia" / cuda / "bin" / "nvcc", f"Cuda compilation tools, release {says}, V{says}.37")
    monkeypatch.syspath_prepend(tmp_path)
    found = tools.find_toolchain().nvcc
    assert (found.path, found.version) == (tmp_path / "nvidia" / "cu13" / "bin" / "nvcc", "13.5")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nvidia" / "cu12"))
    assert tools.find_toolchain().nvcc.version == "12.9"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cmake": "/no/cmake"}, "--cmake is /no/cmake: no cmake there"),
        ({"nvcc": "/no/nvcc"}, "--nvcc is /no/nvcc: no nvcc there"),
        ({"cxx": "no-such-compiler"}, r"--cxx is no-such-compiler: no C\+\+ compiler there"),
        ({"headers": "/no"}, "--headers is /no: no TensorRT headers there"),
    ],
)
def test_what_is_named_must_be_there(option, message):
    with pytest.raises(DogeExportError, match=message):
        tools.find_toolchain(**option)


def test_headers_are_told_by_their_version(tmp_path, bare_machine):
    for minor in (9, 8):
        (tmp_path / "NvInferVersion.h").write_text(f"#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR {minor}\n")
        if minor == 9:
            assert tools.find_toolchain(headers=tmp_path).headers.version == "10.9"
    with pytest.raises(DogeExportError, match=r"TensorRT headers 10\.8; 10\.9 or newer is needed"):
        tools.find_toolchain(headers=tmp_path)


@pytest.mark.parametrize(("defined", "told"), [(13000, "13.0"), (12080, "12.8"), (11080, "11.8")])
def test_cuda_headers_are_told_by_their_version(tmp_path, bare_machine, monkeypatch, defined, told):
    monkeypatch.setattr(tools, "_cuda_header_folders", lambda nvcc: [tmp_path])
    (tmp_path / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {defined}\n")
    assert tools.find_toolchain().cuda_headers.version == told


@pytest.mark.parametrize("architectures", ["", "sm_89", "89,x"])
def test_architectures_are_cmakes(toolchain, cache, architectures):
    result = run("build", "--cuda-archs", architectures)
    assert result.exit_code == 2
    assert "write them as CMake does" in result.stderr


def test_kernels_that_cannot_be_compiled_are_refused_where_asked_for(toolchain, cache, monkeypatch):
    without = building.find_toolchain()
    missing = tools.Tool("nvcc", None, "", "install the CUDA toolkit")
    monkeypatch.setattr(building, "find_toolchain", lambda **_: tools.dataclasses.replace(without, nvcc=missing))
    result = run("build", "--cuda-archs", "89")
    assert result.exit_code == 2
    assert "architecture 89 cannot be compiled for: no nvcc: install the CUDA toolkit" in result.stderr
    assert "drop one" in run("build", "--cuda-archs", "89", "--no-cuda").stderr


@pytest.fixture
def own_sources(tmp_path, monkeypatch):
    """A copy of the sources without their tests, to change."""
    copy = tmp_path / "sources"
    shutil.copytree(source_folder.plugin_sources(), copy, ignore=shutil.ignore_patterns("tests"))
    monkeypatch.setattr(building, "plugin_sources", lambda: copy)
    return copy


def test_what_does_not_compile_is_shown_and_not_kept(toolchain, cache, own_sources):
    file = own_sources / "sizes" / "status.cpp"
    file.write_text("int broken() { return nothing; }\n" + file.read_text())
    result = run("build", "--no-cuda")
    assert result.exit_code == 1
    assert "status.cpp:1:23: error: 'nothing' was not declared" in result.stderr.replace("\u2018", "'").replace(
        "\u2019", "'"
    )
    last = result.stderr.splitlines()[-1]
    log = Path(last.rpartition("see ")[2])
    assert last.startswith("doge-export: error: the plugin does not compile")
    assert "nothing" in log.read_text()
    assert [path for path in cache.iterdir() if path != log] == []


def test_a_warning_is_an_error(toolchain, cache, own_sources):
    file = own_sources / "sizes" / "status.cpp"
    file.write_text(file.read_text() + "static int unused_function() { return 1; }\n")
    with pytest.raises(RunFailed):
        building.build(cuda=False)


def test_the_hash_follows_sources_and_nothing_else(own_sources):
    before = source_folder.source_hash(own_sources)
    (own_sources / "README.md").write_text("other words")
    (own_sources / "tests").mkdir()
    (own_sources / "tests" / "new_test.cpp").write_text("int main() {}")
    assert source_folder.source_hash(own_sources) == before
    (own_sources / "sizes" / "sizes.h").rename(own_sources / "sizes" / "size.h")
    assert source_folder.source_hash(own_sources) != before


def test_settings_have_builds_of_their_own(toolchain):
    sources = source_folder.plugin_sources()
    settings = [
        building.CompileSettings(("89",)),
        building.CompileSettings(("90",)),
        building.CompileSettings(("89",), nvidia_headers=True),
    ]
    assert len({building._key(sources, each, toolchain) for each in settings}) == 3


def test_only_the_c_interface_is_exported(library):
    symbols = subprocess.run(["nm", "-D", "--defined-only", library.path], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    declared = (source_folder.plugin_sources() / "include/doge/operators.h").read_text()
    assert all(name == "doge_architectures" or f" {name}(" in declared or f"*{name}(" in declared for name in names)
    assert len(names) == 14


def test_a_wheel_brings_the_sources(tmp_path):
    """Without the native decoder, which takes most of a build's time and has tests of its own (test_cpu_build.py)."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=os.environ | {"DOGE_EXPORT_CPU": "0"},
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    sources = tmp_path / "installed" / "doge_export" / "_plugins"
    assert source_folder.source_hash(sources) == source_folder.source_hash(source_folder.plugin_sources())
    told = subprocess.run(
        [sys.executable, "-c", "from doge_export.plugin.sources import plugin_sources; print(plugin_sources())"],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(told.stdout.strip()) == sources
