"""The fields that the lint reads are those that TensorRT's own registry lists, where the lean runtime is installed."""

from __future__ import annotations

import pytest
from tensorrt_on_cpu import in_a_process, require_lean_runtime, tensorrt_major

from doge_export.plugin.build import TENSORRT_PLUGIN, cached_builds
from doge_export.trt.creators import packaged


def of_registry(registry):
    """What TensorRT (full or lean) itself says of the creators it has loaded: operator -> attribute -> INT or FLOAT."""
    kinds = {"INT32": "INT", "FLOAT32": "FLOAT"}
    return {
        creator.name: {field.name: kinds.get(field.type.name, field.type.name) for field in creator.field_names}
        for creator in registry.all_creators
        if creator.plugin_namespace == "doge"
    }


def listed(library):
    import tensorrt_lean_bindings as trt

    registry = trt.get_plugin_registry()
    assert registry.load_library(library) is not None
    return of_registry(registry)


def built():
    from pathlib import Path

    here = Path(__file__).parents[2].glob(f"build/plugins/*/lib/{TENSORRT_PLUGIN}")
    cached = (Path(build["folder"]) / TENSORRT_PLUGIN for build in cached_builds())
    return next((file for file in [*here, *cached] if file.is_file()), None)


def test_the_registry_lists_the_same():
    require_lean_runtime()
    library = built()
    if library is None:
        pytest.skip(f"no {TENSORRT_PLUGIN} is built: doge-export plugin build")
    require_lean_runtime(tensorrt_major(library))
    seen, _ = in_a_process(listed, library)
    assert seen == {creator.name: {field.name: field.type for field in creator.fields} for creator in packaged()}
