"""Engines built by TensorRT for RTX, here and without a GPU, and the plugin that they call."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import tempfile
from pathlib import Path

import pytest
from engine_on_cpu import plan_of, stored_traced
from older_doge import make_checkpoint
from plugin_tree import compiled_tree

from doge_export.assets import bundled
from doge_export.package.onnx_file import write_onnx
from doge_export.plugin.build import TENSORRT_PLUGIN
from doge_export.plugin.toolchain import find_toolchain
from doge_export.runtime.engine import plugin_file
from doge_export.runtime.engine.kinds import RTX
from doge_export.runtime.engine.library_name import make_known_as
from doge_export.runtime.engine.plugin_file import PluginFile, read_plugin
from doge_export.trt.builder import BuilderSettings, Built, build_engine
from doge_export.trt.engine_plan import EnginePlan

ADA = (8, 9)
BUNDLED = ("doge-nano", "doge-nano-moe")


@functools.cache
def rtx():
    """The module of TensorRT for RTX, whatever a test pretends to be installed; skips the test where it is not."""
    name = next((name for name in RTX.modules if importlib.util.find_spec(name) is not None), None)
    if name is None:
        pytest.skip('no TensorRT for RTX: pip install ".[rtx]"')
    module = importlib.import_module(name)
    make_known_as("libtensorrt_rtx.so", f"libtensorrt_rtx.so.{module.__version__.partition('.')[0]}")
    return module


@functools.cache
def library() -> PluginFile | str:
    """The plugin: the one that is named, or one without kernels, compiled here; why there is none."""
    if plugin_file.is_named(None):
        return plugin_file.find_plugin()
    toolchain = find_toolchain()
    missing = toolchain.cmake.missing or toolchain.cxx.missing
    return missing or read_plugin(compiled_tree(toolchain, target="doge_trt_plugin") / "lib" / TENSORRT_PLUGIN)


def require_plugin() -> PluginFile:
    """The plugin; skips the test where there is none."""
    found = library()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def checkpoint(model: str) -> Path:
    """A bundled model, or a published size with random weights."""
    if model in BUNDLED:
        return bundled(model)
    folder = Path(tempfile.mkdtemp(prefix="doge-real-size-"))
    make_checkpoint.make(model, folder, "G4b" if "MoE" in model else "G7")
    return folder


@functools.cache
def planned(model: str, precision: str, attention: str, max_length: int, cache: str = "unbounded") -> EnginePlan:
    """The plan of an engine with room for one row."""
    _, traced = stored_traced(checkpoint(model), max_length)
    return plan_of(traced, precision=precision, attention=attention, builder="rtx", cache=cache)


@dataclasses.dataclass(frozen=True)
class RealBuild:
    """A built engine and its plan."""

    plan: EnginePlan
    built: Built

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return sum(cache.past.endswith(".key") for cache in self.plan.caches)


@functools.cache
def built(
    model: str,
    precision: str,
    attention: str,
    max_length: int = 64,
    capabilities: tuple[tuple[int, int], ...] = (ADA,),
    cache: str = "unbounded",
) -> RealBuild:
    """Build an engine, once in this process."""
    trt = rtx()
    plugin = require_plugin() if attention == "plugin" else None
    plan = planned(model, precision, attention, max_length, cache)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(plan.graph, file)
        settings = BuilderSettings(compute_capabilities=capabilities)
        return RealBuild(plan, build_engine(trt, plan, file, plugin, settings))
