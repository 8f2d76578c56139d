"""Bounded caches of 8 and 16 bits; doge-nano keeps 64 keys."""

from __future__ import annotations

import shutil

import numpy as np
import onnx_ir as ir
import pytest

import doge_export
from doge_export import load
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.package.manifest import UNLIMITED, read_manifest
from doge_export.package.onnx_file import write_onnx
from doge_export.pipeline.quantize import quantize
from doge_export.quantization.caches import slot_ranges
from doge_export.quantization.quantize_slots import QuantizeSlots
from doge_export.quantization.reduced_precision import FP16, INT8
from doge_export.quantization.texts import Texts, of_all_lengths, texts_for
from doge_export.runtime.decoders.bounded import BoundedDecoder
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.runtime.decoders.native_bounded import BoundedNativeDecoder
from doge_export.runtime.graph import open_graph
from doge_export.runtime.native.interface import Kind

WINDOW = 64
GRAPH = "onnx/model.onnx"


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounded") / "folder"
    doge_export.export("doge-nano", folder, cache="bounded", max_length="unlimited", validate=False)
    return folder


@pytest.fixture(scope="module")
def material(bounded, texts):
    """Texts of 8 windows, each of several stories, float32 logits of them, and the ranges of the caches."""
    session = load(bounded, backend="graph")
    stories = texts_for("evaluation", session, texts["eval_text"]).rows
    turned = Texts("stories", tuple(stories[place] for start in range(0, 15, 5) for place in turned_by(start, stories)))
    rows = np.stack(of_all_lengths(turned, session.manifest)[-1].rows[:4])
    assert rows.shape == (4, 8 * WINDOW)
    calibration = texts_for("calibration", session, texts["calibration"])
    return rows, read(session.decoder, rows), slot_ranges(bounded / GRAPH, calibration)


def turned_by(start, stories):
    """Places of the stories in order, beginning elsewhere."""
    return [(start + place) % len(stories) for place in range(len(stories))]


@pytest.fixture(scope="module")
def only_caches(bounded, material, tmp_path_factory):
    """A decoder of doge-nano in float32 but for its caches."""
    model = ir.load(bounded / GRAPH)
    QuantizeSlots(material[2])(model)
    file = tmp_path_factory.mktemp("slots") / "model.onnx"
    write_onnx(model, file)
    return BoundedDecoder(open_graph(file.parent, file.name), SequenceLimits.of(read_manifest(bounded)))


def read(decoder, rows, size=WINDOW):
    """Logits [rows, S, V] of rows that are read in pieces of `size` tokens."""
    decoder.reset(len(rows))
    pieces = range(0, rows.shape[1], size)
    return np.concatenate([decoder.forward(rows[:, start : start + size]) for start in pieces], axis=1)


def divergence(expected, found):
    """Mean KL divergence of the worst stretch: the second window, the third and fourth, the last four."""
    kl = kl_divergence(log_softmax(expected), log_softmax(found))
    return max(kl[:, start : 2 * start].mean() for start in (WINDOW, 2 * WINDOW, 4 * WINDOW))


def test_what_caches_of_eight_bits_cost_over_eight_windows(material, only_caches):
    rows, expected, _ = material
    assert 0 < divergence(expected, read(only_caches, rows)) <= INT8.max_kl_selecting


def test_what_native_caches_of_eight_bits_cost_over_eight_windows(bounded, material, native_library):
    rows, expected, _ = material
    session = load(bounded, backend="native")
    decoder = BoundedNativeDecoder(session.decoder.model, SequenceLimits.of(session.manifest), Kind.INT8)
    assert 0 < divergence(expected, read(decoder, rows)) <= INT8.max_kl_selecting


def test_what_caches_of_sixteen_bits_cost_over_eight_windows(bounded, material, monkeypatch):
    rows, expected, _ = material
    decoder, forward = load(bounded, backend="graph").decoder, BoundedDecoder.forward

    def rounded(decoder, ids):
        logits = forward(decoder, ids)
        for name, cache in zip(decoder._pasts, decoder._caches, strict=True):
            if name != "past_scores":
                cache.update_inplace(cache.numpy().astype(np.float16).astype(np.float32))
        return logits

    monkeypatch.setattr(BoundedDecoder, "forward", rounded)
    assert 0 < divergence(expected, read(decoder, rows)) <= FP16.max_kl


@pytest.mark.parametrize(
    ("sizes", "bar"), [([1] * 100, 0.02), ([64, 1, 35], 2e-5), ([99, 1], 2e-5)], ids=["steps", "pieces", "step"]
)
def test_a_key_is_rounded_once(material, only_caches, sizes, bar):
    """Its own run reads it rounded too; one between two codes may fall to the other where sums are of another order."""
    rows = material[0][:1, :100]
    whole = read(only_caches, rows, 100)
    only_caches.reset(1)
    ends = np.cumsum(sizes)
    pieces = [only_caches.forward(rows[:, end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    difference = np.abs(np.concatenate(pieces, axis=1) - whole)
    assert difference.max() < bar * whole.std() and difference.mean() < 0.001 * whole.std()
    assert difference[:, :8].max() < 2e-5 * whole.std()  # before the first key that falls to another code


def test_a_slot_moves_with_its_codes(bounded, material, only_caches):
    """In layer 0, whose scores are exact, the same keys are kept, each the nearest code of its channel."""
    exact = load(bounded, backend="graph").decoder
    for decoder in (exact, only_caches):
        read(decoder, material[0][:1])
    for part, (codes, expected) in enumerate(
        zip(only_caches.cache_snapshot()[0], exact.cache_snapshot()[0], strict=True)
    ):
        scale = material[2][0][part][:, None] * np.float32(1.25 / 127)
        assert codes.dtype == np.int8 and codes.shape == expected.shape == (1, 2, WINDOW, 64)
        is_inside = np.abs(expected[0]) < 127 * scale
        assert is_inside.mean() > 0.99
        assert (np.abs(codes[0] * scale - expected[0]) <= 0.501 * scale)[is_inside].all()
    np.testing.assert_array_equal(only_caches.state()["past_scores"][:, :2], exact.state()["past_scores"][:, :2])


def test_goes_back_and_goes_on_from_a_state(bounded, material, only_caches):
    rows = material[0][:1]
    whole = read(only_caches, rows[:, :200], 50)
    only_caches.reset(1)
    only_caches.forward(rows[:, :50])
    only_caches.mark()
    only_caches.forward(rows[:, 50:100])
    only_caches.rewind(50)
    only_caches.forward(rows[:, 50:100])
    state = only_caches.state()
    only_caches.reset(1)
    only_caches.restore(state, 100)
    np.testing.assert_array_equal(only_caches.forward(rows[:, 100:150]), whole[:, 100:150])


def test_ranges_cover_keys_that_were_dropped(bounded, material):
    session = load(bounded, backend="graph")
    rows = material[0][:1, :256]  # behind them RoPE is scaled, by the longest of a run
    session.decoder.reset(1)
    largest = np.zeros((2, 2, 64), np.float32)
    for start in range(0, 256, WINDOW):
        session.decoder.forward(rows[:, start : start + WINDOW])
        snapshot = np.abs(np.stack(session.decoder.cache_snapshot()[1])).max(axis=(1, 3))
        largest = np.maximum(largest, snapshot)
    found = np.stack(slot_ranges(bounded / GRAPH, Texts("one", (rows[0],)))[1])
    assert (found >= largest - 1e-4).all()


def test_folders_in_fewer_bits_cache_in_eight(bounded, texts, tmp_path, native_library):
    """By onnxruntime and by the native decoder; behind its 256 trained tokens int8 weights exchange too many keys."""
    folder = shutil.copytree(bounded, tmp_path / "copy")
    graph = quantize(folder, ["int8"], max_kl=1, **texts).manifest.graphs[INT8.file]
    assert graph.quantization["cache"] == "int8"
    assert graph.quality["judged_length"] == 8 * WINDOW and read_manifest(folder).max_length == UNLIMITED
    answers = set()
    for backend, form in (("native", "native int8"), ("graph", "graph")):
        session = load(folder, precision="int8", backend=backend)
        answers.add(session.generate("Once upon a time", max_new_tokens=12).text)
        assert session.decoder.state_form == form
    assert len(answers) == 1
    assert session.decoder.cache_snapshot()[0][0].dtype == np.int8


@pytest.mark.parametrize(
    ("past", "ranges", "reader", "message"),
    [
        ("past_key_values.0.key", 0, "MatMul", "value past_key_values.0.key: expected a range for layer 0"),
        ("past_key_values.0.key", 1, "Neg", "value past_key_values.0.key: expected a MatMul"),
        ("past_key_values.0.key", 1, None, "value past_key_values.0.key: expected a Concat"),
        ("past.key", 1, "MatMul", "value past.key: expected the name"),
        ("past", 1, "MatMul", "graph .*: expected caches, found none"),
    ],
)
def test_a_graph_without_known_slots_is_refused(past, ranges, reader, message):
    x, cache = ir.val("x", ir.DataType.FLOAT, [1, 1, 4, 8]), ir.val(past, ir.DataType.FLOAT, [1, 1, 4, 8])
    nodes = [ir.node("Concat", [cache, x], {"axis": 2})] if reader else [ir.node("Neg", [cache])]
    nodes += [ir.node(reader, [x, nodes[0].outputs[0]] if reader == "MatMul" else nodes[0].outputs)] if reader else []
    graph = ir.Graph([x, cache], nodes[-1].outputs, nodes=nodes, name="graph")
    with pytest.raises(ir.passes.PreconditionError, match=f"^QuantizeSlots: {message}"):
        QuantizeSlots([(np.ones((1, 8), np.float32),) * 2] * ranges)(ir.Model(graph, ir_version=10))
