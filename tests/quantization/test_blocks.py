"""What is stored is what onnxruntime reads back."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from one_thread import open_session
from weight_graph import model_of

from doge_export.quantization import quantize_weights
from doge_export.quantization.quantize_weights import QuantizeWeights
from doge_export.quantization.rounding import fitted, nearest
from doge_export.quantization.weights import quantizable_weights

ROWS, WIDTH = 40, 256
KINDS = [(8, 128), (8, 64), (4, 32), (4, 64), (4, 16)]
TIED = ("FusedMatMul", "Transpose")
# Of a tied weight onnxruntime wants 4-bit zero points packed in two ways; nothing here makes such.
READERS = [
    (product, symmetric, *kind)
    for product in ("MatMul", *TIED, None)
    for symmetric in (True, False)
    for kind in KINDS
    if symmetric or kind[0] == 8 or product not in TIED
]


def random_weight(seed=0, rows=ROWS, width=WIDTH):
    """Rows of very different size, one of zeros, one of positive numbers alone."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, width)) * np.exp(rng.standard_normal((rows, 1)))
    weight[3] = 0
    weight[4] = np.abs(weight[4])
    return weight.astype(np.float32)


def quantise(model, storage, **options):
    QuantizeWeights(quantizable_weights(model.graph), storage, **options)(model)
    return model


def run(model, **feeds):
    return open_session(model).run(None, feeds)


def whole(blocks):
    return lambda weight: [(slice(0, weight.shape[0]), blocks)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_nearest_is_within_half_a_step(bits, block, symmetric):
    weight = random_weight()
    blocks = nearest(weight, bits, block, symmetric=symmetric)
    off = np.abs(weight - blocks.dequantized()).reshape(blocks.codes.shape)
    steps = np.abs(blocks.scales)[..., None]
    assert (off <= steps * (0.5 + 1e-5)).all()
    assert (off[3] == 0).all()
    assert blocks.codes.max() < 2**bits


@pytest.mark.parametrize(("symmetric", "share"), [(True, 0.8), (False, 0.95)])
def test_fitted_scales_lose_less_in_every_block(symmetric, share):
    """With zero points there is less to gain: both ends of a block are on a code already."""
    weight = random_weight()
    importance = np.random.default_rng(1).uniform(0.01, 10, WIDTH).astype(np.float32)
    error = {
        kind: (importance * (weight - blocks.dequantized()) ** 2).reshape(ROWS, -1, 32).sum(-1)
        for kind, blocks in {
            "nearest": nearest(weight, 4, 32, symmetric=symmetric),
            "fitted": fitted(weight, 4, 32, importance, symmetric=symmetric),
        }.items()
    }
    assert (error["fitted"] <= error["nearest"] * (1 + 1e-5) + 1e-12).all()
    assert error["fitted"].sum() < share * error["nearest"].sum()


@pytest.mark.parametrize(("product", "symmetric", "bits", "block"), READERS)
def test_onnxruntime_reads_what_numpy_reads(bits, block, symmetric, product, monkeypatch):
    monkeypatch.setattr(quantize_weights, "ACCURACY_LEVEL", 1)  # inputs in float32, so that only weights are rounded
    weight = random_weight()
    blocks = nearest(weight, bits, block, symmetric=symmetric)
    shared = product in TIED
    model = quantise(model_of(weight, product=product, lookup=product is None or shared), whole(blocks))
    rng = np.random.default_rng(2)
    feeds, expected = {}, []
    read = blocks.dequantized()
    if product is not None:
        feeds["x"] = rng.standard_normal((2, 3, WIDTH)).astype(np.float32)
        expected.append(feeds["x"] @ read.T)
    if product is None or shared:
        feeds["ids"] = rng.integers(0, ROWS, (2, 3))
        expected.append(read[feeds["ids"]])
    for found, wanted in zip(run(model, **feeds), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("has_rank", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(8, 128), (8, 32), (4, 128), (4, 16)])
@pytest.mark.parametrize("product", [None, "FusedMatMul"])
def test_standard_operators_read_what_numpy_reads(monkeypatch, product, bits, block, has_rank):
    """For runtimes without GatherBlockQuantized, from the same stored codes, bit for bit."""
    monkeypatch.setattr(quantize_weights, "ACCURACY_LEVEL", 1)
    blocks = nearest(random_weight(), bits, block)
    model = model_of(random_weight(), product=product, lookup=True)
    if not has_rank:
        next(value for value in model.graph.inputs if value.name == "ids").shape = None
    quantise(model, whole(blocks), standard_lookups=True)
    assert "GatherBlockQuantized" not in {node.op_type for node in model.graph}
    ids = np.random.default_rng(2).integers(0, ROWS, (2, 3))
    feeds = {} if product is None else {"x": np.zeros((2, 3, WIDTH), np.float32)}
    np.testing.assert_array_equal(run(model, ids=ids, **feeds)[-1], blocks.dequantized()[ids])


@pytest.mark.parametrize(("bits", "block"), [(8, 128), (4, 32)])
@pytest.mark.parametrize("product", ["MatMul", *TIED])
def test_expanded_weights_are_folded_when_a_session_is_created(product, bits, block, tmp_path):
    """A runtime without kernels of few bits multiplies float32 by float32, with nothing to unpack at every token."""
    blocks = nearest(random_weight(), bits, block)
    model = model_of(random_weight(), product=product, lookup=product in TIED)
    quantise(model, whole(blocks), standard_lookups=True, expand=True)
    assert {node.domain for node in model.graph} == {""}
    x = np.random.default_rng(2).standard_normal((2, 3, WIDTH)).astype(np.float32)
    ids = {"ids": np.arange(6).reshape(2, 3)} if product in TIED else {}
    wanted = x @ blocks.dequantized().T
    np.testing.assert_allclose(run(model, x=x, **ids)[0], wanted, atol=1e-4 * np.abs(wanted).max())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    folded = ir.load(tmp_path / "folded.onnx").graph
    (node,) = (node for node in folded if node.op_type in ("MatMul", "FusedMatMul"))
    assert node.inputs[1].is_initializer()


@pytest.mark.parametrize("product", TIED)
def test_a_tied_weight_is_stored_once(product):
    model = quantise(model_of(random_weight(), product=product, lookup=True), whole(nearest(random_weight(), 8, 128)))
    readers = {node.op_type: node for node in model.graph}
    assert readers["MatMulNBits"].inputs[1] is readers["GatherBlockQuantized"].inputs[0]
    assert sum(value.const_value.nbytes for value in model.graph.initializers.values()) < 1.1 * ROWS * WIDTH


def test_scales_are_initializers_of_the_product():
    """Behind a node that is not folded away, onnxruntime 1.31 multiplies by something else."""
    model = quantise(
        model_of(random_weight(), product="FusedMatMul", lookup=True), whole(nearest(random_weight(), 4, 32))
    )
    (node,) = (node for node in model.graph if node.op_type == "MatMulNBits")
    assert all(value.is_initializer() for value in node.inputs[1:])
    assert node.attributes["accuracy_level"].as_int() == 4


def test_pieces_of_several_kinds_give_the_outputs_in_order(monkeypatch):
    monkeypatch.setattr(quantize_weights, "ACCURACY_LEVEL", 1)
    weight = random_weight()
    fine, coarse = nearest(weight, 8, 128), nearest(weight, 4, 32)
    cuts = [slice(0, 7), slice(7, 30), slice(30, ROWS)]
    pieces = [(cuts[0], None), (cuts[1], coarse.rows(cuts[1])), (cuts[2], fine.rows(cuts[2]))]
    model = quantise(model_of(weight, product="MatMul"), lambda weight: pieces)
    read = np.concatenate([weight[cuts[0]], coarse.dequantized()[cuts[1]], fine.dequantized()[cuts[2]]])
    x = np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], x @ read.T, atol=1e-3)


def test_a_weight_that_something_else_reads_is_left_alone():
    model = model_of(random_weight(), product="MatMul")
    weight = model.graph.initializers["weight"]
    node = ir.node("Neg", [weight])
    model.graph.append(node)
    assert quantizable_weights(model.graph) == []


def test_a_weight_of_another_graph_is_refused():
    model, other = (model_of(random_weight(), product="MatMul") for _ in range(2))
    with pytest.raises(ir.passes.PreconditionError, match=r"^QuantizeWeights: value weight: expected an initializer"):
        QuantizeWeights(quantizable_weights(other.graph), whole(nearest(random_weight(), 8, 128)))(model)


def test_a_table_in_several_pieces_is_refused():
    blocks = nearest(random_weight(), 8, 128)
    pieces = [(slice(0, 8), blocks.rows(slice(0, 8))), (slice(8, ROWS), blocks.rows(slice(8, ROWS)))]
    with pytest.raises(ir.passes.PreconditionError, match=r"^QuantizeWeights: Gather node .*in one piece, found 2"):
        quantise(model_of(random_weight(), lookup=True), lambda weight: pieces)
