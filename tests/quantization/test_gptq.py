import numpy as np
import onnx_ir as ir
import pytest
from weight_graph import model_of

from doge_export.quantization.gptq import gptq
from doge_export.quantization.gram_matrices import gram_matrices
from doge_export.quantization.recipe import SENSITIVE, Stored, _calibrated, relative_error
from doge_export.quantization.reduced_precision import INT4
from doge_export.quantization.rounding import fitted
from doge_export.quantization.texts import Texts
from doge_export.quantization.weights import quantizable_weights
from doge_export.quantization.whole import WholeTexts


def correlated(width, seed=0):
    """Gram matrix of inputs as a network has them: a few directions carry most of the energy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * width, width // 4)) @ rng.standard_normal((width // 4, width))
    x += 0.3 * rng.standard_normal(x.shape)
    return (x.T @ x).astype(np.float32)


@pytest.mark.parametrize("block", [32, 64])
def test_makes_up_for_its_errors(block):
    weight = np.random.default_rng(1).standard_normal((48, 128)).astype(np.float32)
    gram = correlated(128)
    by_rounding = relative_error(weight, fitted(weight, 4, block).dequantized(), gram)
    by_gptq = relative_error(weight, gptq(weight, gram, 4, block).dequantized(), gram)
    assert by_gptq < by_rounding / 2


def test_inputs_that_never_occur_do_no_harm():
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    gram = correlated(64)
    gram[:, 10:20] = gram[10:20] = 0
    assert np.isfinite(gptq(weight, gram, 4, 32).dequantized()).all()
    nothing = gptq(weight, np.zeros((64, 64), np.float32), 4, 32).dequantized()
    assert np.abs(nothing - weight).max() < 0.5


def test_gram_matrices_are_those_of_the_inputs(nano_folder):
    file = nano_folder / "onnx" / "model.onnx"
    rng = np.random.default_rng(0)
    texts = Texts("random", tuple(rng.integers(0, 1024, (2, 20))))
    found = dict(gram_matrices(file, texts))
    head = next(names for names in found if "model.embed_tokens.weight" in names)
    # The input of the head, seen through the head: logits = x W^T, so X W^T W X^T is known without X.
    weights = {weight.name: weight for weight in quantizable_weights(ir.load(file).graph)}
    weight = weights["model.embed_tokens.weight"].matrix()
    logits = np.concatenate([WholeTexts(file).run(ids)[0][0] for ids in texts.rows])
    expected = (logits.astype(np.float64) ** 2).sum()
    assert np.einsum("vh,hk,vk->", weight, found[head], weight) == pytest.approx(expected, rel=1e-4)
    names = [name for names in found for name in names]
    assert len(names) == len(set(names)) == sum(bool(weight.products) for weight in weights.values())


def test_a_layer_that_four_bits_hurt_gets_eight():
    """All inputs but one are zero, and its weights are the small ones of their blocks."""
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    weight[:, 0] *= 0.01
    gram = np.zeros((128, 128), np.float32)
    gram[0, 0] = 1
    (quantizable,) = quantizable_weights(model_of(weight, product="MatMul").graph)
    stored = Stored({}, {})
    _calibrated(stored, quantizable, INT4, correlated(128))
    assert stored.exceptions == {}
    _calibrated(stored, quantizable, INT4, gram)
    ((rows, blocks),) = stored.rows[quantizable.name]
    assert (rows, blocks.bits) == (slice(0, 64), 8)
    assert stored.exceptions[quantizable.name]["dtype"] == "int8"
    assert relative_error(weight, gptq(weight, gram, 4, 32).dequantized(), gram) > SENSITIVE
