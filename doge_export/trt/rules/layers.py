"""Rules on nodes that become TensorRT's own layers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from doge_export.plugin.tensorrt_versions import dotted
from doge_export.trt.importers import IMPORTERS, importers
from doge_export.trt.limits import MAX_TOP_K
from doge_export.trt.rules.lint_subject import LintSubject, Message, is_custom, name_of


def layer(subject: LintSubject) -> Iterator[Message]:
    """A standard operator has no importer."""
    known = importers(subject.version)
    for node in subject.nodes:
        if not is_custom(node) and node.op_type not in known:
            since = IMPORTERS.get(node.op_type)
            more = "" if since is None else f"; {dotted(since)} is the first that has"
            yield name_of(node), f"{subject.tensorrt} has no layer for {node.op_type}{more}"


def top_k(subject: LintSubject) -> Iterator[Message]:
    """TopK asks for more than `MAX_TOP_K` elements, or for unsorted ones."""
    for node in subject.nodes:
        if is_custom(node) or node.op_type != "TopK":
            continue
        count = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
        picks = None if count is None else int(count.numpy().reshape(-1)[0])
        if picks is not None and picks > MAX_TOP_K:
            yield name_of(node), f"K is {picks}; up to {MAX_TOP_K} expected"
        if "sorted" in node.attributes and node.attributes["sorted"].as_int() != 1:
            yield name_of(node), "sorted is 0; 1 expected"


def attention(subject: LintSubject) -> Iterator[Message]:
    """Attention has a form that is not imported: not four axes, caches, several outputs, or causal and masked."""
    for node in subject.nodes:
        if is_custom(node) or node.op_type != "Attention":
            continue
        if sum(bool(value.name) for value in node.outputs) != 1:
            yield name_of(node), f"{len(node.outputs)} outputs; 1 expected"
        if any(value is not None for value in node.inputs[4:]):
            yield name_of(node), "past_key, past_value and nonpad_kv_seqlen are not read"
        causal = node.attributes.get("is_causal")
        if causal is not None and causal.as_int() and len(node.inputs) > 3 and node.inputs[3] is not None:
            yield name_of(node), "is_causal beside a mask; one of them expected"
        for value in node.inputs[:4]:
            if value is not None and value.shape is not None and len(value.shape) != 4:
                yield name_of(node), f"{value.name} has {len(value.shape)} axes; 4 expected"


def cache_in_place(subject: LintSubject) -> Iterator[Message]:
    """TensorScatter does not write into a network input that is a network output again, the only form imported."""
    for node in subject.nodes:
        if is_custom(node) or node.op_type != "TensorScatter":
            continue
        past, present = node.inputs[0], node.outputs[0]
        if past is None or not past.is_graph_input():
            yield name_of(node), "the cache it writes to is no input of the graph"
        elif past.shape is not None and (len(past.shape) != 4 or not isinstance(past.shape[2], int)):
            yield name_of(node), f"the cache is {past.shape}; four axes and a static third expected"
        if not present.is_graph_output():
            yield name_of(node), "the written cache is no output of the graph"
        axis, mode = node.attributes.get("axis"), node.attributes.get("mode")
        if axis is not None and axis.as_int() != -2:
            yield name_of(node), f"axis is {axis.as_int()}; -2 expected"
        if mode is not None and mode.as_string() != "linear":
            yield name_of(node), f"mode is {mode.as_string()}; linear expected"
