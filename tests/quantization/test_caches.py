"""Keys and values cached in 8 bits."""

import numpy as np
import onnx_ir as ir
import pytest

from doge_export import load
from doge_export.package.onnx_file import write_onnx
from doge_export.pipeline.quantize import quantize
from doge_export.quantization import add_graphs as module
from doge_export.quantization.caches import cache_ranges
from doge_export.quantization.quality import measure
from doge_export.quantization.quantize_caches import HEADROOM, QuantizeCaches
from doge_export.quantization.texts import Texts, texts_for
from doge_export.quantization.whole import WholeTexts
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.runtime.decoders.in_place import InPlaceDecoder
from doge_export.runtime.graph import open_graph

PROMPT = "Once upon a time, there was a little cat named Tom. Tom liked to"


@pytest.fixture(scope="module")
def ids(quantised):
    return np.array([load(quantised("doge-nano", "onnxruntime").folder).tokenizer.encode(PROMPT)])


@pytest.fixture(scope="module")
def only_caches(quantised, texts, tmp_path_factory):
    """doge-nano or doge-nano-moe in float32 but for its caches: opens a decoder; `file` is the graph."""
    files = {}

    def make(name):
        if name not in files:
            session = load(quantised(name, "onnxruntime").folder, precision="fp32")
            ranges = cache_ranges(session.decoder, texts_for("calibration", session, texts["calibration"]))
            model = ir.load(session.folder / "onnx/model.onnx")
            QuantizeCaches(ranges)(model)
            files[name] = tmp_path_factory.mktemp("caches") / "model.onnx"
            write_onnx(model, files[name])
        return files[name]

    return make


@pytest.fixture
def subject(quantised, only_caches):
    file, manifest = only_caches("doge-nano"), quantised("doge-nano", "onnxruntime").manifest
    return InPlaceDecoder(open_graph(file.parent, file.name), SequenceLimits.of(manifest))


def decoder(result, precision="int8"):
    return load(result.folder, precision=precision, backend="graph").decoder


def steps(decoder, ids, sizes):
    """Logits of pieces of these sizes, through the cache."""
    ends = np.cumsum(sizes)
    return np.concatenate([decoder.forward(ids[:, end - size : end]) for size, end in zip(sizes, ends, strict=True)], 1)


def test_caches_are_stored_in_eight_bits(quantised, ids):
    for precision in ("int8", "int4"):
        subject = decoder(quantised("doge-nano", "onnxruntime"), precision)
        subject.forward(ids)
        assert {cache.dtype for layer in subject.cache_snapshot() for cache in layer} == {np.dtype(np.int8)}
    described = quantised("doge-nano", "onnxruntime").manifest.graphs["onnx/model_quantized.onnx"].quantization
    assert described["cache"] == "int8"
    assert described["calibration"]["tokens"] > 500


def test_other_tools_cache_in_float32(quantised, ids):
    result = quantised("doge-nano", "portable")
    subject = decoder(result)
    subject.forward(ids)
    assert subject.cache_snapshot()[0][0].dtype == np.float32
    assert result.manifest.graphs["onnx/model_quantized.onnx"].quantization["cache"] == "fp32"


def test_float_cache(copy, texts):
    result = quantize(copy, ["int8"], float_cache=True, **texts)
    assert result.manifest.graphs["onnx/model_quantized.onnx"].quantization["cache"] == "fp32"
    model = ir.load(copy / "onnx/model_quantized.onnx")
    assert all(
        value.dtype == ir.DataType.FLOAT for value in model.graph.inputs if value.name.endswith((".key", ".value"))
    )


@pytest.mark.parametrize("float_cache", [False, True])
def test_text_is_written_where_something_reads_it(copy, texts, monkeypatch, float_cache):
    """A large model takes minutes to write it."""
    asked = []
    monkeypatch.setattr(module, "texts_for", lambda purpose, *rest: asked.append(purpose) or texts_for(purpose, *rest))
    quantize(copy, ["int8"], float_cache=float_cache, **texts)
    assert asked == (["evaluation"] if float_cache else ["evaluation", "calibration"])


@pytest.mark.parametrize("name", ["doge-nano", "doge-nano-moe"])
def test_what_the_caches_alone_cost(quantised, only_caches, texts, name):
    """Everything else is float32."""
    folder = quantised(name, "onnxruntime").folder
    evaluation = texts_for("evaluation", load(folder), texts["eval_text"])
    quality = measure(WholeTexts(folder / "onnx/model.onnx"), WholeTexts(only_caches(name)), evaluation, 0.001)
    assert 0 < quality.kl_mean < 0.001
    assert quality.argmax_agreement > 0.99


def test_ranges_are_the_largest_of_all_texts(quantised, ids):
    session = load(quantised("doge-nano", "onnxruntime").folder, precision="fp32")
    other = ids[:, ::-1].copy()
    ranges = cache_ranges(session.decoder, Texts("two", (ids[0], other[0])))
    for layer, (key, value) in enumerate(ranges):
        caches = []
        for text in (ids, other):
            session.decoder.reset(1)
            session.decoder.forward(text)
            caches.append(session.decoder.cache_snapshot()[layer])
        for part, found in enumerate((key, value)):
            every = np.concatenate([cache[part] for cache in caches], axis=2)
            np.testing.assert_array_equal(found, np.abs(every).max(axis=(0, 2)))


def test_what_is_stored_is_the_nearest_code(quantised, ids):
    """The first layer, where nothing that was rounded before has a part in it."""
    result = quantised("doge-nano", "onnxruntime")
    exact, rounded = decoder(result, "fp32"), decoder(result)
    model = ir.load(result.folder / "onnx/model_quantized.onnx")
    exact.forward(ids)
    rounded.forward(ids)
    for part, name in enumerate(("key", "value")):
        scale = model.graph.initializers[f"past_key_values.0.{name}.scale"].const_value.numpy()
        found, expected = rounded.cache_snapshot()[0][part] * scale, exact.cache_snapshot()[0][part]
        # Half a code of its own, and what the products of 8-bit inputs are off by.
        assert np.abs(found - expected).max() < 0.5 * scale.max() + 0.02 * np.abs(expected).max()
        assert np.abs(scale * 127 / HEADROOM).max() > 0.5 * np.abs(expected).max()


@pytest.mark.parametrize("sizes", [lambda n: [1] * n, lambda n: [5, 1, n - 6], lambda n: [n - 1, 1]])
def test_cached_equals_uncached(subject, ids, sizes):
    """A key is rounded when it is stored, so that whoever reads it reads the same."""
    whole = subject.forward(ids)
    subject.reset(1)
    pieces = steps(subject, ids, sizes(ids.shape[1]))
    assert_equal_but_for_roundings(pieces, whole)


def assert_equal_but_for_roundings(found, expected):
    """A key between two codes may fall to the other one where sums are of another order: one code in 127 of one key."""
    assert np.abs(found - expected).max() < 0.01 * expected.std()
    assert np.abs(found - expected).mean() < 0.001 * expected.std()


def test_padding_and_neighbours_change_nothing(subject, ids):
    length = ids.shape[1]
    subject.reset(2)
    short = ids[0, : length - 4]
    rows = np.stack([ids[0], np.concatenate([np.zeros(4, np.int64), short])])
    mask = np.ones_like(rows)
    mask[1, :4] = 0
    batch = np.concatenate([subject.forward(rows, mask)[:, -1:], subject.forward(ids[:, :1].repeat(2, 0))], axis=1)
    for row, text in ((0, ids[0]), (1, short)):
        subject.reset(1)
        alone = np.concatenate([subject.forward(text[None])[:, -1:], subject.forward(ids[:, :1])], axis=1)
        if row == 0:
            assert_equal_but_for_roundings(batch[row], alone[0])
        else:  # a shifted row is rotated by other angles, so its keys fall to other codes
            assert np.abs(batch[row] - alone[0]).max() < 0.05 * alone.std()


def test_rewind(subject, ids):
    first = steps(subject, ids, [8, ids.shape[1] - 8])
    subject.rewind(8)
    np.testing.assert_array_equal(subject.forward(ids[:, 8:]), first[:, 8:])


def test_a_channel_that_is_always_zero(quantised, ids, tmp_path):
    """Its scale must not be: what a later text puts there would be divided by it."""
    folder = quantised("doge-nano", "onnxruntime").folder
    session = load(folder, precision="fp32")
    ranges = cache_ranges(session.decoder, Texts("one", (ids[0],)))
    ranges[0][0][0, 3] = 0
    model = ir.load(folder / "onnx/model.onnx")
    QuantizeCaches(ranges)(model)
    write_onnx(model, tmp_path / "zero.onnx")
    assert np.isfinite(WholeTexts(tmp_path / "zero.onnx").run(ids[0])[0]).all()


@pytest.mark.parametrize(
    ("past", "ranges", "message"),
    [
        ("past_key_values.0.key", 0, "GroupQueryAttention node .*: expected a range for layer 0"),
        ("past", 1, "value past: expected the name"),
        (None, 1, "graph .*: expected GroupQueryAttention nodes"),
    ],
)
def test_a_graph_without_known_caches_is_refused(past, ranges, message):
    x, cache = (ir.val(name, ir.DataType.FLOAT, [1]) for name in ("x", past or "past"))
    node = ir.node("GroupQueryAttention" if past else "Neg", [x, x, x, cache, cache])
    graph = ir.Graph([x, cache], node.outputs, nodes=[node], name="graph")
    with pytest.raises(ir.passes.PreconditionError, match=f"^QuantizeCaches: {message}"):
        QuantizeCaches([(np.ones((1, 8), np.float32),) * 2] * ranges)(ir.Model(graph, ir_version=10))
