"""Every composition: the native decoder computes what the module does, or says in one line what it does not compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from composition_runs import LENGTH, VOCABULARY, run
from composition_weights import GRAPH, written_composition
from compositions import BASE, EVERY
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_logits
from manifests import minimal_manifest

from doge_export.errors import DogeExportError
from doge_export.runtime import loading
from doge_export.runtime.loading import open_decoder
from doge_export.runtime.native.support import NotNative, check_graph, config_of

SERVED_BY_THE_GRAPH = {
    "keys stand still": "keys that stand still",
    "values from a table": "values looked up in a table",
    "no gate": "feed-forward layers without a gate",
    "M0": "feed-forward layers without a gate",
    "M1": "the router of M1",
    "M4": "the router of M4",
    "M5": "the router of M5",
    "M6": "the router of M6",
    "hard threshold": "scores with a threshold",
    "ratio of all": "masks that leave out a share of the keys",
    "ratio of all, replaced": "masks that leave out a share of the keys",
    "ratio beyond a window": "masks that leave out a share of the keys",
    "ratio of the excess": "masks that leave out a share of the keys",
}
NATIVE = [name for name in EVERY if name not in SERVED_BY_THE_GRAPH]
CHUNKS = [(LENGTH,), (9, 6, 1, 8), (1,) * LENGTH]


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_composition_gives_the_logits_of_its_module(name, native_library, tmp_path):
    module, manifest = written_composition(name, tmp_path)
    decoder = open_decoder(tmp_path, manifest, threads=1, backend="native")
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    for chunks in CHUNKS:
        found, expected = run(decoder, ids, chunks=chunks), module_logits(module, ids, None, chunks)
        assert_equal_to_rounding(found, expected, ONNXRUNTIME)
    ids, mask = distinct_ids(3, LENGTH, VOCABULARY), left_padded(LENGTH, 0, 5, 17)
    found, expected = run(decoder, ids, mask, (20, 1, 3)), module_logits(module, ids, mask, (20, 1, 3))
    assert_equal_to_rounding(found[mask == 1], expected[mask == 1], ONNXRUNTIME)


@pytest.mark.parametrize("name", SERVED_BY_THE_GRAPH)
def test_another_composition_is_served_by_its_graph(name):
    architecture = dataclasses.replace(BASE, **EVERY[name])
    manifest = minimal_manifest(target="onnxruntime", architecture=architecture.to_dict())
    with pytest.raises(NotNative, match=f"^it does not compute {SERVED_BY_THE_GRAPH[name]}$"):
        check_graph(manifest, GRAPH)


@pytest.mark.parametrize(
    "change",
    [
        {"score": []},
        {"rope": None},
        {"ratio_mask": {"ratio": 0.5, "keep_window_size": {}, "of_excess": False, "adds_causality": False}},
        {"rms_norm_eps": "small"},
        {"moe": {"num_experts": "many", "num_experts_per_tok": 2}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_values_that_no_architecture_has_are_told(change):
    """`read_manifest` lets them through, as no session reads them."""
    manifest = minimal_manifest(target="onnxruntime", architecture=BASE.to_dict() | change)
    with pytest.raises(NotNative, match="export the model again"):
        config_of(check_graph(manifest, GRAPH), manifest)


def test_a_folder_that_has_no_native_form_is_run_by_its_graph(native_library, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "NATIVE_BY_DEFAULT", True)
    _, manifest = written_composition("no gate", tmp_path)
    with pytest.raises(DogeExportError, match="cannot be run by the native decoder: it does not compute") as caught:
        open_decoder(tmp_path, manifest, backend="native")
    assert "\n" not in str(caught.value)
    decoder = open_decoder(tmp_path, manifest, threads=1)
    assert decoder.backend == "graph" and np.isfinite(decoder.forward(distinct_ids(1, 4, VOCABULARY))).all()
