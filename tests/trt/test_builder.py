"""What TensorRT's builder is told: every name and signature is looked up in the real bindings by the recorder."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_engine import toy_plan

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.onnx_file import write_onnx
from doge_export.plugin.build import TENSORRT_PLUGIN
from doge_export.runtime.engine import plugin_file
from doge_export.trt.builder import BuilderSettings, build_engine, make_monitor


@pytest.fixture
def build(machine, tmp_path):
    def build(plan=None, plugin=True, **settings):
        plan = plan or toy_plan(tmp_path)
        write_onnx(plan.graph, tmp_path / "model.onnx")
        file = tmp_path / "model.onnx"
        return build_engine(machine.trt, plan, file, machine.plugin if plugin else None, BuilderSettings(**settings))

    return build


def test_an_engine_has_both_profiles_in_order(build, machine, tmp_path):
    built = build()
    assert built.engine.startswith(b"FAKE")
    assert (built.layers, built.plugin_layers) == (7, 2)
    plan = toy_plan(tmp_path)
    assert machine.trt.profiles == [plan.profiles["prefill"], plan.profiles["decode"]]


def test_the_network_is_strongly_typed_and_the_plugin_comes_first(build, machine):
    build()
    real = machine.trt.real
    network_flags, parser_flag = machine.trt.flags
    assert network_flags == 1 << int(real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert parser_flag == real.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE


@pytest.mark.parametrize("gone", ["STRONGLY_TYPED", "ENABLE_PLUGIN_OVERRIDE"])
def test_versions_without_these_flags(build, machine, gone):
    """Before 10.15 there is no override, after 11 maybe no flag for what is then the only way."""

    class Without:
        def __init__(self, known):
            self.known = known

        def __getattr__(self, name):
            if name == gone:
                raise AttributeError(name)
            return getattr(self.known, name)

    for enum in ("NetworkDefinitionCreationFlag", "OnnxParserFlag"):
        setattr(machine.trt, enum, Without(getattr(machine.trt.real, enum)))
    build()
    assert len(machine.trt.flags) == (2 if gone == "STRONGLY_TYPED" else 1)
    assert (machine.trt.flags[0] == 0) == (gone == "STRONGLY_TYPED")


def test_every_setting_reaches_the_builder(build, machine, tmp_path):
    cache = tmp_path / "timing.cache"
    build(
        opt_level=5,
        workspace_mib=2,
        timing_cache=cache,
        hardware="ampere+",
        version_compatible=True,
        embed_plugin=True,
        tf32=False,
    )
    real, settings = machine.trt.real, machine.trt.settings
    assert settings["IBuilderConfig.builder_optimization_level"] == 5
    assert settings["pool.WORKSPACE"] == 2 << 20
    assert settings["IBuilderConfig.hardware_compatibility_level"] == real.HardwareCompatibilityLevel.AMPERE_PLUS
    assert settings["flag.VERSION_COMPATIBLE"] is True and settings["flag.TF32"] is False
    assert settings["IBuilderConfig.plugins_to_serialize"] == [str(machine.plugin.path)]
    assert cache.read_bytes() == b"measured"


def test_left_alone_only_tf32_is_off(build, machine):
    build()
    named = {name for name in machine.trt.settings if not name.endswith(("progress_monitor", "optimization_level"))}
    assert named == {"flag.TF32"} and machine.trt.settings["flag.TF32"] is False


def test_same_compute_capability(build, machine):
    build(hardware="same")
    level = machine.trt.settings["IBuilderConfig.hardware_compatibility_level"]
    assert level == machine.trt.real.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def test_a_timing_cache_goes_on_growing(build, tmp_path):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"known ")
    build(timing_cache=cache)
    assert cache.read_bytes() == b"known measured"


def test_a_timing_cache_keeps_what_another_build_wrote_meanwhile(build, machine, tmp_path, monkeypatch):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"known ")
    recorder = type(machine.trt)
    build_network = recorder.Builder_build_serialized_network

    def beside_another(*arguments):
        cache.write_bytes(b"theirs ")
        return build_network(*arguments)

    monkeypatch.setattr(recorder, "Builder_build_serialized_network", beside_another)
    build(timing_cache=cache)
    assert cache.read_bytes() == b"known theirs measured"


def test_a_timing_cache_of_another_gpu_is_made_anew(build, tmp_path, capsys):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"other gpu")
    build(timing_cache=cache)
    assert cache.read_bytes() == b"measured"
    assert "another GPU or TensorRT" in capsys.readouterr().err


def test_a_failed_build_leaves_the_timing_cache(build, machine, tmp_path):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"known ")
    machine.trt.refuses.add("build")
    with pytest.raises(RunFailed, match="did not build the engine: no tactic left"):
        build(timing_cache=cache)
    assert cache.read_bytes() == b"known "


@pytest.mark.parametrize(
    ("refuses", "message"),
    [
        ("parse", r"does not take the graph: no importer for Foo \(and 1 more\)"),
        ("override", "made 0 plugin layers of 2 nodes"),
        ("profile", "does not take the optimisation profile prefill"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(build, machine, refuses, message):
    machine.trt.refuses.add(refuses)
    with pytest.raises(RunFailed, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_a_graph_without_plugin_nodes_needs_none(build, machine, tmp_path):
    built = build(toy_plan(tmp_path, plugin_nodes=0), plugin=False)
    assert built.plugin_layers == 0 and machine.trt.libraries == []


def test_the_plugin_is_registered_once(build, machine):
    build()
    build()
    assert machine.trt.libraries == [str(machine.plugin.path)]


def test_a_plugin_that_is_not_taken(build, machine):
    machine.trt.refuses.add("load_library")
    with pytest.raises(DogeExportError, match="does not load"):
        build()


def test_a_second_plugin_is_refused(build, machine, monkeypatch):
    build()
    monkeypatch.setattr(plugin_file, "_registered", {})
    with pytest.raises(DogeExportError, match="another DynamicMaskAttention plugin"):
        build()


def test_a_plugin_of_another_major_version(machine):
    machine.trt.__version__ = "10.15.1.29"
    with pytest.raises(DogeExportError, match=r"compiled for TensorRT 11, and TensorRT 10.15.1.29 is here"):
        plugin_file.register(machine.trt, machine.plugin)


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(DogeExportError, match="--version-compatible"):
        BuilderSettings(embed_plugin=True).check()
    with pytest.raises(DogeExportError, match="is a folder"):
        BuilderSettings(timing_cache=tmp_path).check()


def test_progress_moves_and_an_interruption_ends_the_build(machine):
    """No exception may pass through TensorRT."""
    steps = []
    monitor = make_monitor(machine.trt, lambda: steps.append(1))
    assert monitor.step_complete("phase", 0) is True and steps == [1]

    def interrupted():
        raise KeyboardInterrupt

    assert make_monitor(machine.trt, interrupted).step_complete("phase", 0) is False


def test_a_plugin_is_found_by_option_then_variable_then_cache(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(plugin_file, "read_plugin", seen.append)
    monkeypatch.setattr(plugin_file, "cached_builds", lambda: [{"folder": "kept", "libraries": [TENSORRT_PLUGIN]}])
    plugin_file.find_plugin()
    monkeypatch.setenv(plugin_file.VARIABLE, str(tmp_path / "variable.so"))
    plugin_file.find_plugin()
    plugin_file.find_plugin(tmp_path / "option.so")
    assert seen == [Path("kept") / TENSORRT_PLUGIN, tmp_path / "variable.so", tmp_path / "option.so"]


def test_what_is_no_plugin_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv(plugin_file.VARIABLE, raising=False)
    monkeypatch.setattr(plugin_file, "cached_builds", list)
    with pytest.raises(DogeExportError, match="doge-export plugin build"):
        plugin_file.find_plugin()
    with pytest.raises(DogeExportError, match="there is no plugin"):
        plugin_file.find_plugin(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(DogeExportError, match=r"is not a libdoge_trt_plugin.so"):
        plugin_file.find_plugin(tmp_path / "text.so")
