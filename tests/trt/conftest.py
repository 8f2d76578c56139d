"""A machine with TensorRT and a GPU, both recorders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_engine
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from tensorrt_on_cpu import import_tensorrt

from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.plugin_file import PluginFile
from doge_export.trt.builder import BuilderSettings
from doge_export.trt.make import gpu_here, write_engine


@dataclasses.dataclass
class Machine:
    """What is installed on it; `plugin` is what is found there."""

    trt: FakeTensorRT
    cuda: FakeCuda
    plugin: PluginFile


@pytest.fixture(autouse=True)
def _shared_references(shared_references: Callable[..., object]) -> None:
    """Many engines of one model are validated."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    cuda = FakeCuda()
    trt = FakeTensorRT(import_tensorrt(), cuda, lambda graph: toy_engine.execute)
    library = tmp_path / "libdoge_trt_plugin.so"
    library.write_bytes(b"plugin")
    plugin = PluginFile(library, "ab" * 32, 1, (11, 1, 0))
    monkeypatch.setattr(plugin_file, "_registered", {})
    monkeypatch.setattr(plugin_file, "find_plugin", lambda path=None, capabilities=(): plugin)
    installed = {"tensorrt": trt, "cuda.bindings.runtime": cuda}
    monkeypatch.setattr(installation, "_imported", installed.get)
    return Machine(trt, cuda, plugin)


@pytest.fixture
def engine_folder(machine: Machine, tmp_path: Path) -> Callable[..., Path]:
    """Builds a toy engine on the machine; gives its folder."""

    def build(candidates: int = toy_engine.CANDIDATES, **settings: object) -> Path:
        folder = tmp_path / f"engine-{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        plan = toy_engine.toy_plan(tmp_path, candidates=candidates)
        write_engine(machine.trt, gpu_here(), plan, folder, machine.plugin, BuilderSettings(**settings))  # type: ignore[arg-type]
        toy_engine.finish(folder, plan)
        return folder

    return build
