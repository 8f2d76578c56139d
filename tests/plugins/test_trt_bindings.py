"""TensorRT's full Python bindings on a CPU, over stubs of its libraries: what is called exists, the plugin is found."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
from tensorrt_on_cpu import import_tensorrt, in_a_process, require_bindings, require_lean_runtime, tensorrt_major


@pytest.fixture(autouse=True)
def _needs_bindings():
    require_bindings()


def described():
    trt = import_tensorrt()
    import tensorrt

    assert tensorrt is trt
    names = ("OnnxParserFlag", "PreviewFeature", "LayerType", "BuilderFlag", "DataType")
    return {
        "version": trt.__version__,
        "enums": {name: list(getattr(trt, name).__members__) for name in names},
        "parser": inspect.getdoc(trt.OnnxParser.__init__),
    }


def test_the_bindings_are_the_real_ones():
    """Names that the plugin's part of a build stands on."""
    seen, _ = in_a_process(described)
    assert int(seen["version"].split(".")[0]) >= 10
    assert "PLUGIN_V3" in seen["enums"]["LayerType"]
    assert "ENABLE_PLUGIN_OVERRIDE" in seen["enums"]["OnnxParserFlag"]
    assert "ALIASED_PLUGIN_IO_10_03" in seen["enums"]["PreviewFeature"]
    assert {"FLOAT", "HALF", "BF16", "INT32"} <= set(seen["enums"]["DataType"])
    assert "network" in seen["parser"]


def refused():
    trt = import_tensorrt()
    try:
        trt.Builder(trt.Logger())
    except TypeError as error:
        return str(error)
    return None


def test_nothing_can_be_built_with_stubs():
    if importlib.util.find_spec("tensorrt_libs") is not None:
        pytest.skip("TensorRT's libraries are installed: no stubs are used")
    seen, _ = in_a_process(refused)
    assert "nullptr" in seen


def found_by_full_bindings(library):
    trt = import_tensorrt()
    registry = trt.get_plugin_registry()
    registry.load_library(library)
    creator = registry.get_creator("DynamicMaskAttention", "1", "doge")
    return [field.name for field in creator.field_names]


def test_the_full_bindings_find_the_plugin(trt_library):
    require_lean_runtime()
    seen, lines = in_a_process(found_by_full_bindings, trt_library)
    assert seen[:4] == ["num_heads", "kv_num_heads", "scale", "keep_window_size"]
    assert lines == []


def loaded_by_polygraphy(library):
    trt = import_tensorrt()
    from polygraphy.backend.trt import load_plugins

    load_plugins(plugins=[library])
    return sorted(each.name for each in trt.get_plugin_registry().all_creators if each.plugin_namespace == "doge")


@pytest.mark.parametrize("name", ["libdoge_trt_autoload.so", "libdoge_trt_plugin.so"])
def test_polygraphy_needs_autoload(trt_library, name):
    """`polygraphy --plugins` only opens the library: that registers the plugin by way of autoload, and not without."""
    require_lean_runtime(tensorrt_major(trt_library))
    if importlib.util.find_spec("polygraphy") is None:
        pytest.skip("no polygraphy: pip install polygraphy")
    seen, _ = in_a_process(loaded_by_polygraphy, trt_library.with_name(name))
    names = ["CDMoE", "DynamicMaskAttention", "FusedCDMoE", "FusedDynamicMaskAttention"]
    assert seen == (names if "autoload" in name else [])
