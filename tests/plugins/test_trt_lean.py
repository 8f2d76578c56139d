"""The plugin in the registry of TensorRT's lean runtime, which needs no GPU."""

from __future__ import annotations

import ctypes
import json
import sys

import pytest
from tensorrt_on_cpu import in_a_process, require_lean_runtime, tensorrt_major

ATTENTION = {"num_heads": 8, "kv_num_heads": 4, "scale": 0.125, "keep_window_size": 2048}
BOUNDED = {**ATTENTION, "bounded": 1, "alias_kv_cache": 1}
CDMOE = {"num_experts_per_tok": 4, "weights_inside": 0}
FUSED = {**ATTENTION, "exponential_score": 1, "qk_norm": 1, "epsilon": 0.125}
FUSED_CDMOE = {**CDMOE, "num_routing_heads": 1, "mixes_tokens": 1}
DEFAULTS = {
    "DynamicMaskAttention": {"bounded": "0", "alias_kv_cache": "0"},
    "FusedDynamicMaskAttention": {"bounded": "0", "alias_kv_cache": "0"},
}
NAMES = {"DynamicMaskAttention", "CDMoE", "FusedDynamicMaskAttention", "FusedCDMoE"}


@pytest.fixture(autouse=True, scope="module")
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


def creators(trt, registry):
    described = {}
    for name in NAMES:
        creator = registry.get_creator(name, "1", "doge")
        described[name] = {
            "kind": creator.interface_info.kind,
            "fields": [[field.name, field.type.name] for field in creator.field_names],
        }
    missing = [registry.get_creator("CDMoE", *rest) is None for rest in (("1", ""), ("2", "doge"), ("1", "dog"))]
    return {"described": described, "missing": missing, "version": trt.__version__}


def plugin(trt, registry, name, values, phase="BUILD"):
    """What Python can read of the plugin made from these fields; None where none is made."""
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


NEXT = "-- next --"


def answers(library, asked):
    """What each plugin asked for is like, then both creators; a line between what they write to stderr."""
    trt, registry = loaded(library)
    seen = []
    for each in asked:
        seen.append(plugin(trt, registry, *each))
        sys.stderr.write(f"{NEXT}\n")
        sys.stderr.flush()
    return [*seen, creators(trt, registry)]


CREATED = {
    "attention": ("DynamicMaskAttention", ATTENTION, 4),
    "bounded": ("DynamicMaskAttention", BOUNDED, 5),
    "cdmoe": ("CDMoE", CDMOE, 1),
    "fused attention": ("FusedDynamicMaskAttention", FUSED, 4),
    "fused cdmoe": ("FusedCDMoE", FUSED_CDMOE, 1),
}
REFUSED = {
    "none": ("DynamicMaskAttention", {}, "num_heads is missing; 1 or more expected"),
    "zero": ("DynamicMaskAttention", {**ATTENTION, "num_heads": 0}, "num_heads is 0; 1 or more expected"),
    "type": ("DynamicMaskAttention", {**ATTENTION, "scale": 1}, "scale is int32; float32 expected"),
    "name": ("CDMoE", {**CDMOE, "k": 4}, "no attribute is called 'k'; there are num_experts_per_tok, weights_inside"),
}


@pytest.fixture(scope="module")
def schema(trt_library):
    return ctypes.CDLL(str(trt_library)).doge_plugin_abi_version()


@pytest.fixture(scope="module")
def seen(trt_library, schema):
    """Answer and lines of each question, all of which one process is asked: it costs a second."""
    asked = {name: each[:2] for name, each in {**CREATED, **REFUSED}.items()}
    asked["stored"] = ("DynamicMaskAttention", {"schema": schema, **BOUNDED}, "RUNTIME")
    asked["newer"] = ("CDMoE", {"schema": schema + 1, **CDMOE}, "RUNTIME")
    made, lines = in_a_process(answers, trt_library, [*asked.values()])
    parts = [part.strip().splitlines() for part in "\n".join(lines).split(NEXT)]
    return dict(zip([*asked, "creators"], zip(made, parts, strict=True), strict=True))


def test_both_creators_are_listed(trt_library, seen):
    told, lines = seen["creators"]
    library = ctypes.CDLL(str(trt_library))
    library.doge_plugin_fields.restype = ctypes.c_char_p
    types = {"INT": "INT32", "FLOAT": "FLOAT32"}
    for operator in json.loads(library.doge_plugin_fields())["operators"]:
        described = told["described"][operator["name"]]
        assert described["kind"] == "PLUGIN CREATOR_V3ONE"
        assert described["fields"] == [[field["name"], types[field["type"]]] for field in operator["attributes"]]
    assert told["missing"] == [True, True, True]
    assert lines == []


@pytest.mark.parametrize("case", CREATED)
def test_plugins_are_created(seen, case):
    (name, values, outputs), (made, lines) = CREATED[case], seen[case]
    assert made["identity"] == [name, "1", "doge"]
    assert made["interfaces"] == ["IPluginV3OneCore", "IPluginV3OneBuildV2", "IPluginV3OneRuntime"]
    assert made["outputs"] == outputs
    assert made["timing_cache_id"] == made["metadata"]
    assert dict(part.split("=") for part in made["metadata"].split()) == {
        **DEFAULTS.get(name, {}),
        **{key: f"{value:g}" for key, value in values.items()},
    }
    assert lines == []


@pytest.mark.parametrize("case", REFUSED)
def test_bad_attributes_make_no_plugin_and_one_line(seen, case):
    name, _, message = REFUSED[case]
    assert seen[case] == (None, [f"doge: {name} 'layer': {message}"])


def test_what_an_engine_stores_makes_the_plugin_again(seen):
    assert seen["stored"] == seen["bounded"]
    assert seen["stored"][1] == []


def test_an_engine_of_another_schema_is_refused(seen, schema):
    assert seen["newer"] == (
        None,
        [
            f"doge: CDMoE 'layer': the engine was built by a plugin of schema {schema + 1}, "
            f"this one has schema {schema}; build the engine again"
        ],
    )


def loaded_again(library):
    """Our creators once loaded, loaded twice, unloaded and loaded anew; and what the second loading gave."""
    import tensorrt_lean_bindings as trt

    registry = trt.get_plugin_registry()
    handle, seen = registry.load_library(library), [registered(registry)]
    second = registry.load_library(library)
    seen.append(registered(registry))
    registry.deregister_library(handle)
    seen.append(registered(registry))
    registry.load_library(library)
    return [*seen, registered(registry)], second is None


def test_loading_twice_changes_nothing_and_unloading_can_be_undone(trt_library):
    (seen, second_is_none), _ = in_a_process(loaded_again, trt_library)
    assert seen == [sorted(NAMES), sorted(NAMES), [], sorted(NAMES)]
    assert second_is_none


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
    [["tensorrt", "open", "open"], ["tensorrt", "load", "open"], ["tensorrt", "open", "load"]],
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
