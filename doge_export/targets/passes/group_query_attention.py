"""The attention operators as onnxruntime's GroupQueryAttention, which updates a preallocated cache in place.

The score of a key is passed as attention_bias. Differences from the operators:

- Caches, scores and the mask are buffers of fixed `capacity`, bound once, so their shapes tell no length. The runtime
  writes the lengths into four small inputs instead: `past_length` and `total_length` int64 [1], and in the kernel's
  own types `seqlens_k` int32 [batch_size] (the last key's place) and `total_sequence_length` int32 [].
- `attention_mask` int64 [batch_size, capacity] covers cached and new tokens.
- The scores of all layers are one buffer, `past_scores` float32 [batch_size, L * Hs, 1, capacity], in which padding is
  not marked. `new_scores` [batch_size, L * Hs, 1, sequence_length] holds the scores of the new tokens, which the
  runtime appends to the past ones. A model without scores has neither.
- With `static_rope` the kernel rotates queries and keys: no frequency depends on the length, so cosines and sines are
  tables of the positions 0 to max_length - 1, which onnxruntime computes while it loads, and `position_ids` is no
  input. A token's place in the cache stands for its position: RoPE is relative, and padding on the left shifts a whole
  row.
- The kernel applies causality: it masks the keys after P + i of every row. With `fully_masked_rows` the bias does it
  instead: a fully masked row then attends evenly to all T keys, later ones included, as in transformers. Such a row is
  padding, which only reference CDMoE routing reads, because it mixes tokens; or a token that the selection of an older
  generation leaves no key.
- The kernel takes head sizes that are multiples of 8. Other heads, which no published model has, are padded with zeros,
  and so are their caches; no product changes by that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from doge_export.graph.schemas import DOMAIN
from doge_export.targets.contract import ContractError, extent, graph_input, shape_of
from doge_export.targets.lowering import Lowering, constant, named, shaped
from doge_export.targets.passes.joint_heads import JointHeads
from doge_export.targets.passes.rope_tables import scales_rope
from doge_export.targets.passes.selection import (
    ATTENTION,
    check_attention,
    raw_scores,
    read_lengths_from,
    row_bias,
    selects_keys,
    visible_keys,
)
from doge_export.targets.target import Traits

PAST_SCORES, NEW_SCORES = "past_scores", "new_scores"


class GroupQueryAttention(Lowering):
    """Lower every attention operator to com.microsoft GroupQueryAttention; selection adds nodes only where it is used.

    Needs a canonical language model: inputs input_ids and attention_mask, at least one attention node, padding marked
    in the scores, caches of static head count and size. With `static_rope` also position_ids, and frequencies that do
    not depend on the length.

    Args:
        traits: properties of the model.
    """

    domain, op_types = DOMAIN, ATTENTION

    def __init__(self, traits: Traits) -> None:
        super().__init__()
        self.traits = traits

    def requires(self, model: ir.Model) -> None:
        """Require a canonical language model that fits the traits."""
        super().requires(model)
        graph = model.graph
        for name in ("input_ids", "attention_mask", *(["position_ids"] if self.traits.static_rope else [])):
            graph_input(graph, name)
        if not self.nodes(graph):
            raise ContractError(f"graph {graph.name}", f"expected {' or '.join(ATTENTION)} nodes, found none")
        if self.traits.static_rope and scales_rope(graph):
            raise ContractError(f"graph {graph.name}", "expected RoPE frequencies that do not depend on the length")
        caches = [*graph.inputs, *graph.outputs]
        for value in named(caches, ".key") + named(caches, ".value"):
            shape_of(value, 4), extent(value, 1), extent(value, 3)

    def check(self, node: ir.Node) -> None:
        """Check one attention node."""
        check_attention(node)
        extent(node.inputs[0], 2)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the cache inputs and outputs, then every node."""
        graph = self.graph = model.graph
        nodes = self.nodes(graph)
        for values in (graph.inputs, graph.outputs):
            for value in named(values, ".score"):
                values.remove(value)
        self.joint = JointHeads(graph, nodes, self.traits)
        self.causal = self.traits.fully_masked_rows or any(map(selects_keys, nodes))
        self._lengths()
        self._past_scores([scores for node in nodes if (scores := raw_scores(node)) is not None])
        self.new_scores: list[ir.Value] = []
        result = super().call(model)
        if self.new_scores:
            self._keep_new_scores()
        caches = [*graph.inputs, *graph.outputs]
        for value in named(caches, ".key") + named(caches, ".value"):
            value.shape = ir.Shape(["batch_size", extent(value, 1), "capacity", _padded(extent(value, 3))])
        model.opset_imports["com.microsoft"] = 1
        # Projections that went into joint ones must be gone before FuseProjections groups what is left.
        common.RemoveUnusedNodesPass()(model)
        return result

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.val(name, dtype, shape)
        self.graph.inputs.append(value)
        return value

    def _lengths(self) -> None:
        """Add the inputs for the lengths, and compute which keys a new token sees."""
        mask, ids = (graph_input(self.graph, name) for name in ("attention_mask", "input_ids"))
        read_lengths_from(ids, mask)
        mask.shape = ir.Shape(["batch_size", "capacity"])
        self.past_length = self._input("past_length", ir.DataType.INT64, [1])
        self.total_length = self._input("total_length", ir.DataType.INT64, [1])
        self.last_key = self._input("seqlens_k", ir.DataType.INT32, ["batch_size"])
        self.total = self._input("total_sequence_length", ir.DataType.INT32, [])
        tape = Tape()
        so_far = tape.op("Slice", [mask, self.ints(0), self.total_length, self.ints(1)])
        self.visible = visible_keys(tape, self.graph, so_far, self.past_length, self.total_length, causal=self.causal)
        self.graph.insert_before(self.graph[0], tape.nodes)

    def _past_scores(self, scores: Sequence[ir.Value]) -> None:
        """Add the buffer of cached scores, and split it into those of each layer, [B, Hs, 1, P]."""
        self.past_scores: list[ir.Value] = []
        if not scores:
            return
        widths = [extent(value, 2) for value in scores]
        self.width = sum(widths)
        buffer = self._input(PAST_SCORES, ir.DataType.FLOAT, ["batch_size", self.width, 1, "capacity"])
        tape = Tape()
        so_far = tape.op("Slice", [buffer, self.ints(0), self.past_length, self.ints(3)])
        self.past_scores = [so_far]
        if len(widths) > 1:
            self.past_scores = list(
                tape.op_multi_out("Split", [so_far, self.ints(*widths)], {"axis": 1}, num_outputs=len(widths))
            )
        self.graph.insert_before(self.graph[0], tape.nodes)

    def _keep_new_scores(self) -> None:
        """Add the output for the scores of the new tokens of all layers."""
        tape = Tape()
        several = len(self.new_scores) > 1
        every = tape.op("Concat", self.new_scores, {"axis": 1}) if several else tape.op("Identity", self.new_scores)
        every.name, every.dtype = NEW_SCORES, ir.DataType.FLOAT
        every.shape = ir.Shape(["batch_size", self.width, 1, "sequence_length"])
        self.graph.extend(tape.nodes)
        self.graph.outputs.append(every)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record one layer."""
        heads = node.attributes["num_heads"].as_int()
        scores = self._scores(tape, node)
        bias = row_bias(tape, self.graph, node, scores, self.visible, self.total_length)
        score_heads = 1 if scores is None else extent(scores, 1)
        if 1 < score_heads < heads:
            repeated = np.arange(heads) * score_heads // heads
            bias = tape.op("Gather", [bias, constant(self.graph, repeated)], {"axis": 1})
        attributes = {
            "num_heads": heads,
            "kv_num_heads": node.attributes["kv_num_heads"].as_int(),
            "scale": node.attributes["scale"].as_float(),
        }
        if self.traits.fully_masked_rows:
            attributes["causal"] = 0
        size = extent(node.inputs[0], 2) // heads
        query, key, value, table = self.joint.build(tape, node)
        if table is not None:
            attributes["do_rotary"] = 1
        query, key, value = (self._pad(tape, x, size) for x in (query, key, value))
        caches = node.inputs[4:6]
        lengths = [self.last_key, self.total]
        inputs = [query, key, value, *caches, *lengths, *(table or (None, None)), None, bias]
        output, present_key, present_value = tape.op_multi_out(
            "GroupQueryAttention", inputs, attributes, domain="com.microsoft", num_outputs=3
        )
        if _padded(size) != size:
            by_head = tape.op("Reshape", [output, self.ints(0, 0, heads, _padded(size))])
            cut = tape.op("Slice", [by_head, self.ints(0), self.ints(size), self.ints(3)])
            output = tape.op("Reshape", [cut, self.ints(0, 0, heads * size)])
        for present, old in ((present_key, node.outputs[1]), (present_value, node.outputs[2])):
            present.type, present.shape = old.type, old.shape
        return output, present_key, present_value, None

    def _scores(self, tape: Tape, node: ir.Node) -> ir.Value | None:
        """Return the raw scores of cached and new tokens, [B, Hs, 1, T]; None for a layer without scores."""
        raw = raw_scores(node)
        if raw is None:
            return None
        width = extent(raw, 2)
        if width == 1:  # [B, S, 1] needs no Transpose
            new = tape.op("Reshape", [raw, self.ints(0, 1, 1, -1)])
        else:
            new = tape.op("Unsqueeze", [tape.op("Transpose", [raw], {"perm": [0, 2, 1]}), self.ints(2)])
        past = self.past_scores[len(self.new_scores)]
        self.new_scores.append(new)
        return shaped(tape.op("Concat", [past, new], {"axis": -1}), None, width, 1, None)

    def _pad(self, tape: Tape, x: ir.Value | None, size: int) -> ir.Value | None:
        """Pad each head of x [B, S, heads * D] with zeros to a size that the kernel takes."""
        if _padded(size) == size or x is None:
            return x
        heads = extent(x, 2) // size
        by_head = tape.op("Reshape", [x, self.ints(0, 0, heads, size)])
        padded = tape.op("Pad", [by_head, self.ints(0, 0, 0, 0, 0, 0, 0, _padded(size) - size)])
        return tape.op("Reshape", [padded, self.ints(0, 0, heads * _padded(size))])


def _padded(size: int) -> int:
    """Return the head size, rounded up to a multiple of 8."""
    return -(-size // 8) * 8
