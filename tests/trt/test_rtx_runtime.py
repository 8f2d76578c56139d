"""Engines of TensorRT for RTX: what its builder and runtime are told, by a recorder over its real bindings."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import toy_engine
from click.testing import CliRunner
from fake_tensorrt import FakeTensorRT
from real_builds import rtx
from toy_engine import expected

from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest
from doge_export.plugin import build as building
from doge_export.plugin.build import KERNELS, TENSORRT_PLUGIN, Build
from doge_export.plugin.gpus import capability, capability_of
from doge_export.plugin.toolchain import Tool, find_toolchain
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.just_in_time import KEPT
from doge_export.runtime.engine.plugin_file import AMPERE_ARCHITECTURES, PluginFile, check_architectures
from doge_export.runtime.engine.sidecar import SIDECAR
from doge_export.runtime.loading import open_decoder
from doge_export.trt import dry_run, make
from doge_export.trt.builder import BuilderSettings
from doge_export.trt.make import gpu_here, write_engine
from doge_export.trt.real_parser import Parsed


@pytest.fixture
def cards(machine, monkeypatch, tmp_path):
    """The machine, with TensorRT for RTX beside TensorRT; its cache is a folder of the test."""
    machine.rtx = FakeTensorRT(rtx(), machine.cuda, lambda graph: toy_engine.execute)
    machine.rtx.__version__ = rtx().__version__
    installed = {"tensorrt": machine.trt, "tensorrt_rtx_bindings": machine.rtx, "cuda.bindings.runtime": machine.cuda}
    monkeypatch.setattr(installation, "_imported", installed.get)
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "cache"))
    return machine


@pytest.fixture
def folder(cards, tmp_path):
    out = tmp_path / "engine"
    out.mkdir()
    plan = toy_engine.toy_plan(tmp_path)
    settings = BuilderSettings(compute_capabilities=((8, 9), (12, 0)))
    write_engine(cards.rtx, gpu_here(), plan, out, cards.plugin, settings)
    toy_engine.finish(out, plan)
    return out


def steps(folder, count=4):
    """A prompt and some steps; what was asked of the recorder stays in it."""
    decoder = open_decoder(folder, read_manifest(folder))
    text = [1, 2, 3]
    np.testing.assert_array_equal(decoder.forward(np.array([text])), expected([text], 3))
    for token in range(count):
        text.append(token)
        np.testing.assert_array_equal(decoder.forward(np.array([[token]]), None, 1), expected([text], 1))
    return decoder


def test_the_builder_is_told_the_gpus_and_that_runs_are_recorded(folder, cards):
    settings = cards.rtx.settings
    assert settings["IBuilderConfig.num_compute_capabilities"] == 2
    assert [settings[f"capability.{index}"] for index in range(2)] == ["SM89", "SM120"]
    assert settings["flag.REQUIRE_USER_ALLOCATION"] is True and settings["flag.TF32"] is False
    sidecar = json.loads((folder / SIDECAR).read_text())
    assert sidecar["builder"] == "rtx" and sidecar["gpu"] is None
    assert sidecar["compute_capabilities"] == [[8, 9], [12, 0]] and cards.trt.calls.total() == 0


def test_kernels_are_compiled_once_for_a_gpu(folder, cards, tmp_path, capsys):
    """Those of prompts while they run, those of steps before they are recorded; the folder stays as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cards.rtx.flags.clear()
    decoder = steps(folder)
    assert cards.rtx.flags == ["LAZY", "EAGER"] and decoder.recorded
    (kept,) = (tmp_path / "cache" / "compiled").iterdir()
    assert kept.read_bytes().startswith(b"compiled") and "4090" in kept.name and rtx().__version__ in kept.name
    assert "compiling the engine for this GPU" in capsys.readouterr().err
    decoder.close()
    steps(folder).close()
    assert "compiling" not in capsys.readouterr().err
    kept.write_bytes(b"of another driver")
    steps(folder).close()
    assert kept.read_bytes().startswith(b"compiled") and "compiling" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_was_compiled_long_ago_is_forgotten(folder, cards, tmp_path):
    kept = tmp_path / "cache" / "compiled"
    kept.mkdir(parents=True)
    for age in range(20):
        (kept / f"{age}.bin").write_bytes(b"old")
        os.utime(kept / f"{age}.bin", (1e9 - age, 1e9 - age))
    steps(folder).close()
    names = {file.name for file in kept.iterdir()}
    assert len(names) == KEPT and {f"{age}.bin" for age in range(KEPT - 1)} < names


@pytest.mark.parametrize("name", ["file", "x" * 300])
def test_a_cache_that_cannot_be_written_stops_nobody(folder, cards, monkeypatch, tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / name))
    assert steps(folder).recorded


def test_what_is_not_serialized_is_not_kept(folder, cards, tmp_path):
    cards.rtx.refuses.add("serialize")
    decoder = steps(folder)
    decoder.close()
    assert not (tmp_path / "cache").exists()


def test_a_user_without_a_home_has_no_cache(folder, cards, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("DOGE_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert steps(folder).recorded


def test_contexts_go_before_what_they_use(folder, cards):
    """If nobody calls `close`."""
    decoder, gone = steps(folder, 0), []
    runner = decoder._runner
    used = {"cache": runner._opened.just_in_time._cache, "engine": runner._opened.engine}
    for name, each in {**runner._contexts, **used}.items():
        weakref.finalize(each, gone.append, name)
    for context in runner._contexts.values():  # the recorder's hold their engine, as the real ones do
        del context.__dict__["engine_"]
    del each, context, used, runner, decoder
    gc.collect()
    assert {*gone[:2]} == {"prefill", "decode"} and {*gone[2:]} == {"cache", "engine"}


def test_what_cannot_be_recorded_is_run(folder, cards):
    cards.rtx.refuses.add("capturable")
    assert not steps(folder).recorded


def test_forks_share_what_is_compiled(folder, cards):
    decoder = steps(folder)
    created = cards.rtx.calls["IRuntimeConfig.create_runtime_cache"]
    steps_of_fork = decoder.fork().forward(np.array([[1, 2]]))
    np.testing.assert_array_equal(steps_of_fork, expected([[1, 2]], 2))
    assert cards.rtx.calls["IRuntimeConfig.create_runtime_cache"] == created


@pytest.mark.parametrize(
    ("change", "here", "message"),
    [
        ({}, {"capability": (8, 6)}, r"built for compute capability 8.9, 12.0, .* \(8.6\); .*--compute-capability 86"),
        ({"tensorrt": "1.6.1.120"}, {}, r"built by TensorRT for RTX 1.6.1.120, and TensorRT for RTX 1\.\d"),
        ({"builder": "tensorrt"}, {}, r"built by TensorRT \d[\d.]+, and TensorRT 11.4.0.106 is here"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, cards, change, here, message):
    for name, value in here.items():
        setattr(cards.cuda, name, value)
    (folder / SIDECAR).write_text(json.dumps(json.loads((folder / SIDECAR).read_text()) | change))
    with pytest.raises(DogeExportError, match=message) as error:
        open_decoder(folder, read_manifest(folder))
    assert "\n" not in str(error.value)


def test_any_gpu_that_was_named_runs_it(folder, cards):
    cards.cuda.capability, cards.cuda.gpu = (12, 0), b"NVIDIA GeForce RTX 5090"
    steps(folder)


def test_a_plugin_without_kernels_for_the_gpu_is_refused(folder, cards, monkeypatch):
    lacking = PluginFile(cards.plugin.path, cards.plugin.sha256, 1, (0, 0, 0), ("80-real", "90"))
    monkeypatch.setattr(plugin_file, "_registered", {})
    cards.rtx.libraries.clear()
    monkeypatch.setattr(plugin_file, "find_plugin", lambda path=None, capabilities=(): lacking)
    cards.cuda.capability = (12, 0)
    open_decoder(folder, read_manifest(folder))  # by the PTX of 90
    cards.cuda.capability = (8, 9)
    monkeypatch.setattr(plugin_file, "_registered", {})
    cards.rtx.libraries.clear()
    open_decoder(folder, read_manifest(folder))  # machine code of 8.0 runs on 8.9
    none = PluginFile(cards.plugin.path, cards.plugin.sha256, 1, (0, 0, 0), ())
    monkeypatch.setattr(plugin_file, "_registered", {})
    monkeypatch.setattr(plugin_file, "find_plugin", lambda path=None, capabilities=(): none)
    with pytest.raises(DogeExportError, match="has no kernels, and none for compute capability"):
        open_decoder(folder, read_manifest(folder))


COVERED = [
    (("89",), (8, 9), True), (("89",), (12, 0), True), (("89-real",), (12, 0), False), (("86-real",), (8, 9), True),
    (("89-real",), (8, 6), False), (("80-virtual",), (8, 9), True), (("90-virtual",), (8, 9), False),
    (("90a",), (9, 0), True), (("90a",), (12, 0), False), (("120f",), (12, 1), True), ((), (8, 9), False),
    (("120-real",), (12, 0), True), (("native",), (8, 9), False), (AMPERE_ARCHITECTURES, (12, 0), True),
]  # fmt: skip


@pytest.mark.parametrize(("architectures", "capability", "runs"), COVERED)
def test_what_code_runs_on(tmp_path, architectures, capability, runs):
    plugin = PluginFile(tmp_path / "plugin.so", "", 1, (0, 0, 0), architectures)
    assert plugin.runs_on(capability) is runs
    if not runs:
        with pytest.raises(DogeExportError, match="plugin build --cuda-archs") as error:
            check_architectures(plugin, [capability])
        assert "\n" not in str(error.value)


def test_a_plugin_that_does_not_tell_is_taken(tmp_path):
    check_architectures(PluginFile(tmp_path / "plugin.so", "", 1, (11, 1, 0)), [(8, 9)])


def test_an_engine_for_more_gpus_than_its_plugin_is_not_built(machine, monkeypatch, tmp_path):
    """TensorRT's --hw-compat ampere+ promises what a plugin for one GPU does not hold."""
    plugin = PluginFile(machine.plugin.path, "ab" * 32, 1, (11, 1, 0), ("89-real",))
    monkeypatch.setattr(plugin_file, "find_plugin", lambda path=None, capabilities=(): plugin)
    monkeypatch.setenv(plugin_file.VARIABLE, "named")
    arguments = ["trt", "doge-nano", str(tmp_path / "out"), "--hw-compat", "ampere+"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 2 and "kernels for 89-real, and none for compute capability 8.0, 8.6, 9.0" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("capabilities", "architectures"),
    [(((8, 9), (12, 0)), ["89", "120"]), (plugin_file.AMPERE_AND_LATER, AMPERE_ARCHITECTURES)],
)
def test_a_plugin_is_built_for_what_the_engine_names(machine, monkeypatch, tmp_path, capabilities, architectures):
    asked = []

    def none(path=None, capabilities=()):
        raise DogeExportError("no plugin")

    def built(**options):
        asked.append(options)
        return Build(tmp_path, {TENSORRT_PLUGIN: tmp_path / TENSORRT_PLUGIN}, (), (), False, 0.0)

    monkeypatch.delenv(plugin_file.VARIABLE, raising=False)
    monkeypatch.setattr(plugin_file, "find_plugin", none)
    monkeypatch.setattr(plugin_file, "read_plugin", lambda path: path)
    monkeypatch.setattr(make, "build", built)
    monkeypatch.setattr(make, "check_tools", lambda architectures: asked.append({"architectures": architectures}))
    assert make._kept_plugin(capabilities, None) is None
    assert make._built_plugin(capabilities) == tmp_path / TENSORRT_PLUGIN
    assert asked == [{"architectures": architectures}] * 2
    monkeypatch.setattr(
        make, "build", lambda **options: Build(tmp_path, {KERNELS: tmp_path}, (), ("no x: y",), True, 0.0)
    )
    with pytest.raises(DogeExportError, match="no x: y; or take --attention native"):
        make._built_plugin(capabilities)
    with pytest.raises(DogeExportError, match="no plugin"):
        make._kept_plugin(capabilities, tmp_path / "named.so")


def test_a_plugin_is_built_once_the_model_is_read(cards, monkeypatch, tmp_path):
    """Which takes minutes: a model that is not there is told before; so is a compiler that is not there."""

    def none(path=None, capabilities=()):
        raise DogeExportError("no plugin")

    monkeypatch.delenv(plugin_file.VARIABLE, raising=False)
    monkeypatch.setattr(plugin_file, "find_plugin", none)
    monkeypatch.setattr(make, "check_tools", lambda architectures: None)
    monkeypatch.setattr(make, "build", lambda **options: pytest.fail("built"))
    arguments = ["trt", str(tmp_path / "no-such-model"), str(tmp_path / "out"), "--builder", "rtx"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 2 and "no-such-model" in done.stderr
    monkeypatch.undo()
    toolchain = dataclasses.replace(find_toolchain(), nvcc=Tool("nvcc", None, "", "install it"))
    monkeypatch.setattr(building, "find_toolchain", lambda: toolchain)
    with pytest.raises(DogeExportError, match="architecture 89 cannot be compiled for: no nvcc: install it"):
        building.check_tools(["89"])


def test_a_plugin_that_is_named_is_what_a_dry_run_asks_with(cards, monkeypatch, tmp_path):
    asked, plan = [], toy_engine.toy_plan(tmp_path)
    monkeypatch.setattr(
        plugin_file, "find_plugin", lambda path=None, capabilities=(): asked.append(path) or cards.plugin
    )
    plan = dataclasses.replace(plan, plugin_nodes=1)
    monkeypatch.setattr(dry_run, "plan_engine", lambda model, **options: plan)
    monkeypatch.setattr(dry_run, "ask", lambda trt, graph, plugin: Parsed((), 1))
    dry_run.dry_run("model", "rtx", None, plugin=tmp_path / "named.so")
    assert asked == [tmp_path / "named.so"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rtx4090", (8, 9)),
        ("RTX 4070 Ti SUPER", (8, 9)),
        ("GeForce RTX 3060", (8, 6)),
        ("2080ti", (7, 5)),
        ("5090", (12, 0)),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9)),
        ("rtx2050", (8, 6)),
    ],
)
def test_a_card_has_a_compute_capability(text, found):
    assert capability_of(text) == found


def test_compute_capabilities_are_read_as_people_write_them():
    assert [capability(text) for text in ("89", "8.9", "sm_89", "120", "12.1")] == [(8, 9)] * 3 + [(12, 0), (12, 1)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--hw-compat", "same"], "name them with --compute-capability"),
        (["--version-compatible"], "need the version that built them"),
        (["--timing-cache", "cache"], "measures nothing"),
        (["--gpu", "rtx2080"], r"kernels run on compute capability 8.0 or later, .* for 7.5; take --attention native"),
        (["--compute-capability", "90"], r"does not build for compute capability 9.0; it builds for 7.5, 8.0, .*12.1"),
    ],
)
def test_what_tensorrt_for_rtx_does_not_have_is_one_line(cards, tmp_path, option, message):
    arguments = ["trt", "no-such-model", str(tmp_path / "out"), "--builder", "rtx", *option]
    for more in ([], ["--dry-run"]):
        if more and "kernels" in message:  # a plan is made of any GPU
            continue
        done = CliRunner().invoke(main, [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert re.search(message, done.stderr)


def test_answers_of_an_engine_that_cannot_run_are_refused_before_the_work(cards, tmp_path):
    arguments = ["trt", "no-such-model", str(tmp_path / "out"), "--builder", "rtx"]
    arguments += ["--save-results", str(tmp_path / "results")]
    cards.cuda.capability = (9, 0)
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 2 and "there is no GPU of compute capability 8.9 (NVIDIA" in done.stderr
    cards.cuda.fail["cudaGetDeviceCount"] = "cudaErrorInsufficientDriver"
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 2 and "there is no GPU here; leave it out" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_builder_that_is_none_is_one_line(cards):
    with pytest.raises(DogeExportError, match="unknown builder 'trtexec'; choose tensorrt or rtx"):
        installation.choose("trtexec")


def test_of_both_tensorrt_is_taken_where_there_is_a_gpu(cards):
    assert installation.choose() is cards.trt
    cards.cuda.fail["cudaGetDeviceCount"] = "cudaErrorInsufficientDriver"
    assert installation.choose() is cards.rtx
    assert installation.choose("tensorrt") is cards.trt
