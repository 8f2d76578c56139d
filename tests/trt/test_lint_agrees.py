"""The rules and the real parser, that of TensorRT for RTX, say the same of the graphs of test_lint."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
from real_builds import require_plugin, rtx
from test_lint import BROKEN, CACHE, FLOAT, HALF, INT32, WHOLE, WHOLE_SINCE_10_15

from doge_export.trt.lint import lint
from doge_export.trt.real_parser import ask

NEWEST = (11, 4)
BUILDER = "leaves it to the builder, which refuses it"
COUNTS = "and its builder count further; TensorRT's limit and the kernels' is 31 bits"
OUTPUTS = {
    "DynamicMaskAttention": ((HALF, ["batch", "sequence", 64]), (HALF, CACHE), (HALF, CACHE), (FLOAT, CACHE[:3]))
    + ((INT32, CACHE[:3]),),
    "TopK": ((FLOAT, None), (ir.DataType.INT64, None)),
}
"""Type and shape of the outputs of operators that do not have those of their first input."""


def completed(model):
    """What a rule does not look at and a parser needs: types of outputs, constants as initializers, all attributes."""
    for node in model.graph.all_nodes():
        if node.op_type == "DynamicMaskAttention":
            for name in ("bounded", "alias_kv_cache"):
                node.attributes.setdefault(name, ir.AttrInt64(name, 0))
        first = next((value.dtype for value in node.inputs if value is not None and value.dtype is not None), FLOAT)
        for result, (dtype, shape) in zip(node.outputs, OUTPUTS.get(node.op_type, ((first, None),) * 9), strict=False):
            result.dtype = dtype
            result.shape = ir.Shape(shape) if shape and result.shape is None else result.shape
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.name not in model.graph.initializers:
                value.name = value.name or "constant"
                model.graph.register_initializer(value)
    return model


def verdicts(make):
    """Rules that a graph breaks, and what the parser says: "taken", "refused", "lost" plugin nodes."""
    trt, plugin = rtx(), require_plugin()
    model = completed(make())
    broken = {finding.rule for finding in lint(model, NEWEST, sizes={"batch": 4, "sequence": 512, "num_logits": 64})}
    parsed = ask(trt, model, plugin)
    if any(finding.rule == "parser" for finding in parsed.findings):
        return broken, "refused"
    nodes = sum(node.domain not in ("", "ai.onnx") for node in model.graph)
    return broken, "taken" if parsed.plugin_layers == nodes else "lost"


STRICTER = {
    "opset 1": "reads what it knows of opset 25; older parsers, made with opset 24, may misread it",
    "zero-length 0": "leaves it to the builder, which builds an engine that no input fills",
    "nested-plugin 1": "does not look into a function that nothing calls",
    "no-creator 1": "tries the domain where the given namespace has no such plugin; TensorRT 11.1, as read, does not",
    "attribute-unread 0": "drops the attribute without a word",
    "top-k 0": BUILDER,
    "top-k 1": "sorts what need not be sorted; the list of operators of TensorRT 10 asks for 1",
    "cache-in-place 0": BUILDER,
    "cache-in-place 1": BUILDER,
    "volume 0": COUNTS,
    "volume 1": COUNTS,
    "volume 2": COUNTS,
    "volume 3": COUNTS,
}
"""Graphs of test_lint that the rules refuse and the parser takes, and why the rule stays. By rule and number."""

NUMBERS = Counter()
CASES = [
    pytest.param(rule, f"{rule} {(NUMBERS.update([rule]), NUMBERS[rule] - 1)[1]}", make) for rule, _, make in BROKEN
]


@pytest.mark.parametrize(("rule", "case", "make"), CASES, ids=[case.values[1] for case in CASES])
def test_a_broken_graph(rule, case, make):
    """A graph that only an older TensorRT refuses breaks no rule here."""
    broken, said = verdicts(make)
    if case in STRICTER:
        assert (broken, said) == ({rule}, "taken"), f"it no longer {STRICTER[case]}: take the entry out"
    else:
        assert bool(broken) == (said != "taken"), f"rules: {broken}, parser: {said}"


@pytest.mark.parametrize("make", WHOLE + WHOLE_SINCE_10_15)
def test_a_whole_graph(make):
    assert verdicts(make) == (set(), "taken")


def test_every_reason_is_of_a_graph():
    assert STRICTER.keys() <= {case.values[1] for case in CASES}
