"""Opening an engine: what fits this machine, and what is told in one line where it does not or is damaged."""

from __future__ import annotations

import json

import pytest
from fake_tensorrt import serialized
from onnx import helper

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.manifest import read_manifest
from doge_export.runtime.engine import plugin_file
from doge_export.runtime.engine.sidecar import ENGINE, SIDECAR
from doge_export.runtime.loading import open_decoder


@pytest.fixture
def folder(engine_folder):
    return engine_folder()


def change(folder, **values):
    file = folder / SIDECAR
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("changes", "here", "message"),
    [
        ({"tensorrt": "11.3.0.9"}, {}, "built by TensorRT 11.3.0.9, and TensorRT 11.4.0.106 is here"),
        ({"tensorrt": "11.5.0.1", "version_compatible": True}, {}, "or a later one of its major version"),
        ({}, {"capability": (9, 0)}, "compute capability 8.9.*is NVIDIA GeForce RTX 4090 \\(9.0\\); build it again"),
        ({}, {"gpu": b"NVIDIA L4"}, "here is NVIDIA L4"),
        ({"hardware": "ampere+"}, {"capability": (7, 5)}, "--hw-compat ampere\\+"),
        ({"plugin": {"schema": 9}}, {}, "plugin of schema 9"),
        ({"format": 9}, {}, "format 9"),
        ({"format": 1}, {}, "of an older doge-export; build the engine again"),
        ({"builder": "rtx"}, {}, r"built by TensorRT for RTX 11.4.0.106; this needs TensorRT for RTX .*install.*rtx"),
        ({"builder": "other"}, {}, "built by 'other', and this doge-export opens those of tensorrt and rtx"),
        ({"profiles": 3}, {}, "damaged"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(folder, machine, changes, here, message):
    change(folder, **changes)
    for name, value in here.items():
        setattr(machine.cuda, name, value)
    with pytest.raises(DogeExportError, match=message) as error:
        open_decoder(folder, read_manifest(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        ({"tensorrt": "11.2.0.1", "version_compatible": True}, {}),
        ({"hardware": "same"}, {"gpu": b"NVIDIA L4"}),
        ({"hardware": "ampere+"}, {"capability": (12, 0), "gpu": b"NVIDIA GeForce RTX 5090"}),
    ],
)
def test_what_fits_opens(folder, machine, changes, here):
    change(folder, **changes)
    for name, value in here.items():
        setattr(machine.cuda, name, value)
    open_decoder(folder, read_manifest(folder), allow_host_code=True)
    assert machine.trt.settings["Runtime.engine_host_code_allowed"] == changes.get("version_compatible", False)


def test_only_the_user_lets_an_engine_run_code_of_its_own(folder, machine):
    change(folder, version_compatible=True)
    with pytest.raises(DogeExportError, match="if you trust whoever built it, add --allow-host-code") as error:
        open_decoder(folder, read_manifest(folder))
    assert "\n" not in str(error.value)
    change(folder, version_compatible=False)
    open_decoder(folder, read_manifest(folder))
    assert machine.trt.settings["Runtime.engine_host_code_allowed"] is False


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch": 10**12},
        {"max_length": "32"},
        {"max_logits": True},
        {"version_compatible": "yes"},
        {"tensorrt": 11},
        {"tensorrt": "eleven"},
        {"plugin": {}},
        {"plugin": "libdoge_trt_plugin.so"},
        {"profiles": {"prefill": {"input_ids": [[1, 1], [3, 8], [3, 10**12]]}, "decode": {}}},
        {"caches": [{"past": "a", "present": "b", "dtype": "float32", "shape": [1]}]},
        {"inputs": {"input_ids": {"dtype": "object", "shape": [1]}}},
        {"surprise": 1},
        {"compute_capabilities": []},
        {"compute_capabilities": [89]},
        {"engine": {"sha256": "ab", "bytes": 0}},
        {"gpu": 4090},
    ],
)
def test_a_sidecar_of_wrong_types_or_sizes_is_one_line(folder, machine, changes):
    change(folder, **changes)
    with pytest.raises(DogeExportError, match=r"engine\.json is damaged") as error:
        open_decoder(folder, read_manifest(folder))
    assert "\n" not in str(error.value)


def test_a_sidecar_whose_caches_are_smaller_than_the_engine_s_is_refused(folder, machine):
    """The engine would write behind its buffers."""
    caches = json.loads((folder / SIDECAR).read_text())["caches"]
    caches[0]["shape"][2] -= 1
    change(folder, caches=caches)
    with pytest.raises(DogeExportError, match="unlike the tensor"):
        open_decoder(folder, read_manifest(folder))


def test_an_embedded_plugin_is_not_looked_for(folder, machine, monkeypatch):
    def find(path=None, capabilities=()):
        raise AssertionError

    change(folder, plugin_embedded=True)
    monkeypatch.setattr(plugin_file, "find_plugin", find)
    open_decoder(folder, read_manifest(folder))


def test_the_plugin_that_built_an_engine_in_this_process_runs_it(folder, monkeypatch):
    """Named with --plugin, it is found nowhere else, and the validation opens the engine at once."""

    def find(path=None, capabilities=()):
        raise AssertionError

    monkeypatch.setattr(plugin_file, "find_plugin", find)
    open_decoder(folder, read_manifest(folder))


def test_a_new_process_looks_for_the_plugin(folder, machine, monkeypatch):
    monkeypatch.setattr(plugin_file, "_registered", {})
    machine.trt.libraries.clear()
    open_decoder(folder, read_manifest(folder))
    assert machine.trt.libraries == [str(machine.plugin.path)]


def replaced_engine(folder, content):
    """Another engine, of the size that the sidecar notes."""
    (folder / ENGINE).write_bytes(content)
    change(folder, engine={"sha256": "0" * 64, "bytes": len(content)})


def test_a_damaged_engine_is_told(folder):
    replaced_engine(folder, b"no engine")
    with pytest.raises(RunFailed, match="doge-export verify"):
        open_decoder(folder, read_manifest(folder))


def test_a_truncated_engine_is_told_before_tensorrt_reads_it(folder, machine):
    content = (folder / ENGINE).read_bytes()
    (folder / ENGINE).write_bytes(content[:-1])
    machine.trt.calls.clear()
    with pytest.raises(DogeExportError, match=f"has {len(content) - 1} bytes and was written with {len(content)}") as e:
        open_decoder(folder, read_manifest(folder))
    assert "\n" not in str(e.value) and not machine.trt.calls


def test_an_engine_of_another_graph_is_told(folder):
    port = [helper.make_tensor_value_info("x", 1, [1])]
    other = helper.make_model(helper.make_graph([], "other", port, port))
    replaced_engine(folder, serialized(other.SerializeToString()))
    with pytest.raises(DogeExportError, match="other inputs and outputs"):
        open_decoder(folder, read_manifest(folder))
