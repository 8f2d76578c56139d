"""The largest values of a graph: one that is not a number is the largest of all."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from one_thread import open_session

from doge_export.package.onnx_file import write_onnx
from doge_export.targets.half.extremes import Extreme, by_operator, watch, worst


@pytest.fixture(scope="module")
def largest_of(tmp_path_factory):
    """max |x + x| as a watched graph gives it."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["rows", "columns"])
    twice = ir.node("Add", [x, x])
    twice.outputs[0].name, twice.outputs[0].dtype = "y", ir.DataType.FLOAT
    product = ir.node("MatMul", [twice.outputs[0], twice.outputs[0]])
    product.outputs[0].name, product.outputs[0].dtype = "z", ir.DataType.FLOAT
    model = ir.Model(ir.Graph([x], product.outputs, nodes=[twice, product], opset_imports={"": 18}), ir_version=8)
    watched = watch(model)
    (output,) = (name for name, operator in watched.items() if operator == ("Add", "y"))
    file = tmp_path_factory.mktemp("watched") / "model.onnx"
    write_onnx(model, file)
    session = open_session(file)
    return lambda values: float(session.run([output], {"x": values})[0])


@pytest.mark.parametrize("size", [1, 3, 8, 17])
def test_one_that_is_not_a_number_is_seen_at_every_place(largest_of, size):
    values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    assert largest_of(values) == pytest.approx(2 * np.abs(values).max())
    for place in np.ndindex(values.shape):
        broken = values.copy()
        broken[place] = np.nan
        assert largest_of(broken) == np.inf
    assert largest_of(np.full_like(values, np.nan)) == np.inf
    assert largest_of(np.full_like(values, -np.inf)) == np.inf


@pytest.mark.parametrize("beyond", [np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_worst_of_an_operator_in_json(beyond, place):
    extremes = [Extreme("Mul", f"v{index}", magnitude) for index, magnitude in enumerate((1.0, 1e9, 2.0))]
    extremes[place] = Extreme("Mul", "worst", beyond)
    extremes.append(Extreme("Add", "sum", 3.0))
    assert [extreme.value for extreme in worst(extremes)] == ["worst", "sum"] and worst(extremes)[0].overflows
    text = json.dumps(by_operator(extremes), allow_nan=False)
    assert json.loads(text) == {"Add": {"magnitude": 3.0, "value": "sum"}, "Mul": {"magnitude": None, "value": "worst"}}


def test_the_first_of_equals():
    """Where an overflow began, not where it went."""
    extremes = [Extreme("Mul", name, magnitude) for name, magnitude in (("a", 1.0), ("b", np.inf), ("c", np.inf))]
    assert worst(extremes) == [extremes[1]]
