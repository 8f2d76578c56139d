"""The plugin in the registry of TensorRT's lean runtime, which needs no GPU."""

from __future__ import annotations

import ctypes
import json

import pytest
from tensorrt_on_cpu import in_a_process, require_lean_runtime, tensorrt_major

ATTENTION = {"num_heads": 8, "kv_num_heads": 4, "scale": 0.125, "keep_window_size": 2048}
BOUNDED = {**ATTENTION, "bounded": 1, "alias_kv_cache": 1}
CDMOE = {"num_experts_per_tok": 4, "weights_inside": 0}
NAMES = {"DynamicMaskAttention", "CDMoE"}


@pytest.fixture(autouse=True)
def _needs_lean_runtime():
    require_lean_runtime()


def registered(registry):
    """Names of our creators there."""
    return sorted(creator.name for creator in registry.all_creators if creator.plugin_namespace == "doge")


def loaded(library):
    """The lean runtime and its registry, with the plugin in it."""
    import tensorrt_lean_bindings as trt

    registry = trt.get_plugin_registry()
    assert registry.load_library(library) is not None
    return trt, registry


def field_collection(trt, values):
    import numpy as np

    fields = []
    for name, value in values.items():
        is_int = isinstance(value, int)
        data = np.array([value], np.int32 if is_int else np.float32)
        kind = trt.PluginFieldType.INT32 if is_int else trt.PluginFieldType.FLOAT32
        fields.append(trt.PluginField(name, data, kind))
    return trt.PluginFieldCollection(fields)


def creators(library):
    trt, registry = loaded(library)
    described = {}
    for name in NAMES:
        creator = registry.get_creator(name, "1", "doge")
        described[name] = {
            "kind": creator.interface_info.kind,
            "fields": [[field.name, field.type.name] for field in creator.field_names],
        }
    missing = [registry.get_creator("CDMoE", *rest) is None for rest in (("1", ""), ("2", "doge"), ("1", "dog"))]
    return {"described": described, "missing": missing, "version": trt.__version__}


def test_both_creators_are_listed(trt_library):
    seen, lines = in_a_process(creators, trt_library)
    library = ctypes.CDLL(str(trt_library))
    library.doge_plugin_fields.restype = ctypes.c_char_p
    types = {"INT": "INT32", "FLOAT": "FLOAT32"}
    for operator in json.loads(library.doge_plugin_fields())["operators"]:
        described = seen["described"][operator["name"]]
        assert described["kind"] == "PLUGIN CREATOR_V3ONE"
        assert described["fields"] == [[field["name"], types[field["type"]]] for field in operator["attributes"]]
    assert seen["missing"] == [True, True, True]
    assert lines == []


def plugin(library, name, values, phase="BUILD"):
    """What Python can read of the plugin made from these fields; None where none is made."""
    trt, registry = loaded(library)
    creator = registry.get_creator(name, "1", "doge")
    made = creator.create_plugin("layer", field_collection(trt, values), getattr(trt.TensorRTPhase, phase))
    if made is None:
        return None
    kinds = trt.PluginCapabilityType
    core, build, runtime = (made.get_capability_interface(kind) for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME))
    return {
        "identity": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "interfaces": [type(each).__name__ for each in (core, build, runtime)],
        "outputs": build.num_outputs,
        "timing_cache_id": build.timing_cache_id,
        "metadata": build.metadata_string,
    }


@pytest.mark.parametrize(
    ("name", "values", "outputs"),
    [
        ("DynamicMaskAttention", ATTENTION, 4),
        ("DynamicMaskAttention", BOUNDED, 5),
        ("CDMoE", CDMOE, 1),
    ],
    ids=["attention", "bounded", "cdmoe"],
)
def test_plugins_are_created(trt_library, name, values, outputs):
    seen, lines = in_a_process(plugin, trt_library, name, values)
    assert seen["identity"] == [name, "1", "doge"]
    assert seen["interfaces"] == ["IPluginV3OneCore", "IPluginV3OneBuildV2", "IPluginV3OneRuntime"]
    assert seen["outputs"] == outputs
    assert seen["timing_cache_id"] == seen["metadata"]
    assert dict(part.split("=") for part in seen["metadata"].split()) == {
        **({} if name == "CDMoE" else {"bounded": "0", "alias_kv_cache": "0"}),
        **{key: f"{value:g}" for key, value in values.items()},
    }
    assert lines == []


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("DynamicMaskAttention", {}, "num_heads is missing; 1 or more expected"),
        ("DynamicMaskAttention", {**ATTENTION, "num_heads": 0}, "num_heads is 0; 1 or more expected"),
        ("DynamicMaskAttention", {**ATTENTION, "scale": 1}, "scale is int32; float32 expected"),
        ("CDMoE", {**CDMOE, "k": 4}, "no attribute is called 'k'; there are num_experts_per_tok, weights_inside"),
    ],
)
def test_bad_attributes_make_no_plugin_and_one_line(trt_library, name, values, message):
    seen, lines = in_a_process(plugin, trt_library, name, values)
    assert seen is None
    assert lines == [f"doge: {name} 'layer': {message}"]


def test_what_an_engine_stores_makes_the_plugin_again(trt_library):
    library = ctypes.CDLL(str(trt_library))
    stored = {"schema": library.doge_plugin_abi_version(), **BOUNDED}
    again, lines = in_a_process(plugin, trt_library, "DynamicMaskAttention", stored, "RUNTIME")
    built, _ = in_a_process(plugin, trt_library, "DynamicMaskAttention", BOUNDED)
    assert again == built
    assert lines == []


def test_an_engine_of_another_schema_is_refused(trt_library):
    library = ctypes.CDLL(str(trt_library))
    schema = library.doge_plugin_abi_version()
    seen, lines = in_a_process(plugin, trt_library, "CDMoE", {"schema": schema + 1, **CDMOE}, "RUNTIME")
    assert seen is None
    assert lines == [
        f"doge: CDMoE 'layer': the engine was built by a plugin of schema {schema + 1}, "
        f"this one has schema {schema}; build the engine again"
    ]


def loaded_twice(library):
    _, registry = loaded(library)
    there = registered(registry)
    return [there, registry.load_library(library) is None, registered(registry)]


def unloaded(library):
    import tensorrt_lean_bindings as trt

    registry = trt.get_plugin_registry()
    registry.deregister_library(registry.load_library(library))
    after = registered(registry)
    registry.load_library(library)
    return [after, registered(registry)]


def test_loading_twice_changes_nothing(trt_library):
    seen, _ = in_a_process(loaded_twice, trt_library)
    assert seen == [sorted(NAMES), True, sorted(NAMES)]


def test_a_library_can_be_unloaded_and_loaded_again(trt_library):
    assert in_a_process(unloaded, trt_library)[0] == [[], sorted(NAMES)]


def autoloaded(library, autoload, order):
    """Our creators after each step of `order`."""
    registry, seen = None, []
    for step in order:
        if step == "tensorrt":
            import tensorrt_lean_bindings as trt

            registry = trt.get_plugin_registry()
        elif step == "open":
            ctypes.CDLL(autoload)
        elif step == "load":
            registry.load_library(library)
        seen.append([] if registry is None else registered(registry))
    return seen


@pytest.mark.parametrize(
    "order",
    [["tensorrt", "open"], ["tensorrt", "open", "open"], ["tensorrt", "load", "open"], ["tensorrt", "open", "load"]],
    ids=" ".join,
)
def test_autoload_registers_the_plugin_by_being_opened(trt_library, order):
    require_lean_runtime(tensorrt_major(trt_library))
    autoload = trt_library.with_name("libdoge_trt_autoload.so")
    seen, lines = in_a_process(autoloaded, trt_library, autoload, order)
    assert seen == [[]] + [sorted(NAMES)] * (len(order) - 1)
    assert [line for line in lines if "autoload" in line] == []


def test_autoload_without_tensorrt_says_so(trt_library):
    autoload = trt_library.with_name("libdoge_trt_autoload.so")
    seen, lines = in_a_process(autoloaded, trt_library, autoload, ["open"])
    assert seen == [[]]
    assert lines == ["doge: autoload: no TensorRT is loaded in this process, so the plugin is not registered"]
