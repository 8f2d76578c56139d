"""The plugin's library file: what it exports, what it needs, and what it tells without TensorRT."""

from __future__ import annotations

import ctypes
import importlib.resources
import json
import re
import shutil
import subprocess

import pytest

from doge_export.graph.schemas import (
    CDMOE,
    DYNAMIC_MASK_ATTENTION,
    FUSED_CDMOE,
    FUSED_DYNAMIC_MASK_ATTENTION,
)
from doge_export.plugin.architectures import held_by

SCHEMAS = (DYNAMIC_MASK_ATTENTION, CDMOE, FUSED_DYNAMIC_MASK_ATTENTION, FUSED_CDMOE)
"""Of the plugin's operators, in the order in which it lists them."""


@pytest.fixture(scope="session")
def fields(cpu_tree):
    """What the plugin takes, as its core prints it: there with TensorRT's headers or without."""
    done = subprocess.run([cpu_tree / "bin" / "doge_plugin_fields"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def tool():
    def found(name):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"no {name}: install binutils")
        return lambda *arguments: subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout

    return found


def test_fields_are_json_of_all_operators(fields):
    assert fields["namespace"] == "doge"
    assert fields["version"] == "1"
    assert [operator["name"] for operator in fields["operators"]] == [
        "DynamicMaskAttention",
        "CDMoE",
        "FusedDynamicMaskAttention",
        "FusedCDMoE",
    ]


@pytest.mark.parametrize(("index", "schema"), enumerate(SCHEMAS), ids=[schema.name for schema in SCHEMAS])
def test_the_plugin_reads_the_attributes_of_the_onnx_schema(fields, index, schema):
    """Each with the same type and required; what the plugin has beyond them has a default."""
    ours = {attribute["name"]: attribute for attribute in fields["operators"][index]["attributes"]}
    for name, attribute in schema.attributes.items():
        assert ours[name]["type"] == attribute.type.name
        assert ours[name]["required"] is attribute.required
    for name in ours.keys() - schema.attributes.keys():
        assert ours[name]["required"] is False
        assert ours[name]["default"] == 0


@pytest.mark.parametrize(("index", "schema"), enumerate(SCHEMAS), ids=[schema.name for schema in SCHEMAS])
def test_the_plugin_begins_with_the_tensors_of_the_onnx_schema(fields, index, schema):
    """In the same order and of the same types; lengths, slots and weights of norms come after them."""
    operator, schema_type = fields["operators"][index], {"T": "T", "float32": "tensor(float)", "int32": "tensor(int32)"}
    for side in ("inputs", "outputs"):
        expected = getattr(schema, side)
        for ours, theirs in zip(operator[side], expected, strict=False):
            assert (ours["name"], schema_type[ours["type"]]) == (theirs.name, theirs.type_str)
        beyond = {"int32"} if index < 2 else {"float32", "int32"}
        assert {tensor["type"] for tensor in operator[side][len(expected) :]} <= beyond


@pytest.mark.parametrize("index", [0, 2])
def test_a_cache_that_comes_out_has_the_axes_of_one_that_went_in(fields, index):
    attention = fields["operators"][index]
    inputs = {tensor["name"]: tensor for tensor in attention["inputs"]}
    caches = [tensor for tensor in attention["outputs"] if "past" in tensor]
    assert len(caches) == 4
    for cache in caches:
        past = inputs[cache["past"]]
        assert {key: cache.get(key) for key in ("type", "axes", "only_with")} == {
            key: past.get(key) for key in ("type", "axes", "only_with")
        }


def test_exports(trt_library, tool):
    listed = tool("nm")("-D", "--defined-only", trt_library)
    assert sorted(line.split()[-1] for line in listed.splitlines()) == [
        "doge_architectures",
        "doge_plugin_abi_version",
        "doge_plugin_fields",
        "doge_plugin_tensorrt_version",
        "getCreators",
        "setLoggerFinder",
    ]


@pytest.mark.parametrize("name", ["libdoge_trt_plugin.so", "libdoge_trt_autoload.so"])
def test_needs_no_tensorrt_and_no_cuda(trt_library, tool, name):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", tool("readelf")("-d", trt_library.with_name(name)))
    usual = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+"
    assert needed
    assert [library for library in needed if not re.fullmatch(usual, library)] == []


def test_the_library_tells_of_itself(trt_library, fields, toolchain):
    library = ctypes.CDLL(str(trt_library))
    library.doge_plugin_fields.restype = ctypes.c_char_p
    assert json.loads(library.doge_plugin_fields()) == fields
    assert library.doge_plugin_abi_version() == fields["schema"]
    version = library.doge_plugin_tensorrt_version()
    assert f"{version // 10000}.{version // 100 % 100}" == (toolchain.headers.version or "0.0")
    assert held_by(trt_library) == ()


def test_the_package_has_a_copy_of_the_fields(fields, trt_library):
    """The lint of engines reads it where no plugin is built; `doge_plugin_fields > plugin_fields.json` renews it."""
    from doge_export.trt.creators import packaged, read_creators

    file = importlib.resources.files("doge_export.trt").joinpath("plugin_fields.json")
    assert json.loads(file.read_text(encoding="utf-8")) == fields
    library = ctypes.CDLL(str(trt_library))
    library.doge_plugin_fields.restype = ctypes.c_char_p
    assert read_creators(json.loads(library.doge_plugin_fields())) == packaged()
