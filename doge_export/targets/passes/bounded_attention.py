"""The attention operator in standard ops over a cache of at most w keys, w = keep_window_size, which is exact.

State: keys and values [B, Hkv, P, D] of each layer, scores [B, L * Hkv, P] float32 of all L layers, P <= w slots. A run
of S new tokens

1. appends them to the slots, T = P + S;
2. lets new token i see the best w of slots 0 to P + i, by score and, among equals, by lower slot;
3. gives back the best min(w, T) of all T slots, in the order in which they were.

Why this equals attention over all tokens so far. Scores never change and a later token only adds keys, so a key that
has left the best w of the tokens up to i is not among the best w of any longer prefix: the order (score, then lower
index) is total. The best w that new token i may see therefore lie in the best w of the past, which the slots are, and
the new tokens up to i; and what step 3 drops is seen by no later token. S may be any number: prompts may be cut into
any pieces.

Slots stay in the order of their tokens, so a lower slot is a lower index: TopK, which takes the lower of equals, then
breaks ties as it does over the whole sequence, and no index has to be kept. Padding is a score of NEG, so it is the
first to go. The graph knows neither the length of the sequence nor where a slot's token stood: RoPE is in the keys, and
new tokens come with their positions.

w is an input with a default, so that a run may keep fewer keys than the model was trained with.

Each key/value head keeps other keys, those of its own score. A score for each query head of a group would need a copy
of keys and values for each of them; `pipeline.plan` refuses such models, and those whose masks rank or hide all keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.targets.contract import ContractError, extent, graph_input
from doge_export.targets.lowering import Lowering, constant, named
from doge_export.targets.passes.selection import NEG, causal_keys, padded_scores, row_bias
from doge_export.targets.passes.standard_attention import StandardAttention

PAST_SCORES, PRESENT_SCORES = "past_scores", "present_scores"
WINDOW = "keep_window_size"
PAST, PRESENT = "slots", "kept_slots"
"""Names of the dynamic axes: slots before and after a run."""


class BoundedAttention(StandardAttention):
    """Lower every DynamicMaskAttention to attention over slots, and return the slots that are kept.

    Inputs `past_key_values.N.key`, `past_key_values.N.value` and `past_scores` have successors `present.N.key`,
    `present.N.value` and `present_scores` of min(w, T) slots. Input `keep_window_size` is w; feeding it is optional.
    `attention_mask` covers the new tokens alone. Needs, beside what StandardAttention needs, the same keep_window_size
    in all layers and a score for each key/value head.
    The slots of all layers are chosen together, at the end: few and wide nodes.
    """

    def check(self, node: ir.Node) -> None:
        """Check one attention node."""
        super().check(node)
        window, heads = (node.attributes[name].as_int() for name in ("keep_window_size", "kv_num_heads"))
        if window < 1:
            raise ContractError(node, "expected a keep_window_size, found none")
        if extent(padded_scores(node), 2) != heads:
            raise ContractError(node, f"expected a score for each of {heads} key/value heads")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Join the cached scores, replace every node, then choose the slots to keep."""
        graph = self.graph = model.graph
        nodes = self.nodes(graph)
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        for values in (graph.inputs, graph.outputs):
            for value in named(values, ".score"):
                values.remove(value)
        self.heads = extent(nodes[0].inputs[4], 1)
        self.window = self._window_input(nodes[0].attributes["keep_window_size"].as_int())
        joint: list[int | str] = ["batch_size", len(nodes) * self.heads, PAST]
        self.past_scores = ir.val(PAST_SCORES, ir.DataType.FLOAT, joint)
        graph.inputs.append(self.past_scores)
        tape = Tape()
        past = tape.op("Shape", [self.past_scores], {"start": 2, "end": 3})
        new = tape.op("Shape", [graph_input(graph, "input_ids")], {"start": 1, "end": 2})
        self.total_length = tape.op("Add", [past, new])
        self.visible = causal_keys(tape, graph, past, self.total_length)
        rows = tape.op("Shape", [self.past_scores], {"start": 0, "end": 1})
        shape = tape.op("Concat", [rows, self.ints(self.heads), new, self.total_length], {"axis": 0})
        self.nothing = tape.op("Expand", [constant(graph, np.array(NEG)), shape])
        self.pasts = self._by_layer(tape, self.past_scores, len(nodes))
        graph.insert_before(graph[0], tape.nodes)
        self.scores: list[ir.Value] = []
        Lowering.call(self, model)
        self._keep_best()
        return ir.passes.PassResult(model, modified=True)

    def build(self, tape: Tape, node: ir.Node) -> Sequence[ir.Value | None]:
        """Record one layer."""
        _, key, value, score, past_key, past_value, _ = node.inputs
        size = extent(past_key, 3)
        keys, values = (
            tape.op("Concat", [past, self.split(tape, new, self.heads, size)], {"axis": 2})
            for past, new in ((past_key, key), (past_value, value))
        )
        new_scores = tape.op("Transpose", [score], {"perm": [0, 2, 1]})
        scores = tape.op("Concat", [self.pasts[len(self.scores)], new_scores], {"axis": 2})
        self.scores.append(scores)
        by_row = tape.op("Unsqueeze", [scores, self.ints(2)])  # [B, Hkv, 1, T]
        bias = row_bias(tape, self.graph, node, by_row, self.visible, self.total_length, self.window, self.nothing)
        for present, old in ((keys, node.outputs[1]), (values, node.outputs[2])):
            present.type, present.shape = old.type, old.shape
        return self.attend(tape, node, keys, values, bias, self.heads), keys, values, None

    def _window_input(self, default: int) -> ir.Value:
        """Add the input w, int64 [1], whose default is the model's."""
        window = ir.val(WINDOW, dtype=ir.DataType.INT64, shape=[1])
        window.const_value = ir.tensor(np.array([default], dtype=np.int64), name=WINDOW)
        self.graph.inputs.append(window)
        self.graph.register_initializer(window)
        return window

    def _by_layer(self, tape: Tape, joint: ir.Value, layers: int) -> list[ir.Value]:
        """Split [B, L * Hkv, ...] into L values."""
        if layers == 1:
            return [joint]
        sizes = self.ints(*[self.heads] * layers)
        return list(tape.op_multi_out("Split", [joint, sizes], {"axis": 1}, num_outputs=layers))

    def _keep_best(self) -> None:
        """Let the outputs hold the best min(w, T) of T slots, in the order in which they were."""
        graph, layers, tape = self.graph, len(self.scores), Tape()
        scores = tape.op("Concat", self.scores, {"axis": 1})
        count = tape.op("Min", [self.total_length, self.window])
        _, best = tape.op_multi_out("TopK", [scores, count], {"axis": -1, "sorted": 0}, num_outputs=2)
        ordered, _ = tape.op_multi_out("TopK", [best, count], {"axis": -1, "largest": 0, "sorted": 1}, num_outputs=2)
        kept = tape.op("GatherElements", [scores, ordered], {"axis": 2})
        kept.name, kept.type = PRESENT_SCORES, self.past_scores.type
        kept.shape = ir.Shape(["batch_size", layers * self.heads, PRESENT])
        rows = self._by_layer(tape, tape.op("Unsqueeze", [ordered, self.ints(3)]), layers)
        for place, every in enumerate(graph.outputs):
            if every.name is None or not every.name.startswith("present."):
                continue
            layer, part = every.name.split(".")[1:]
            present = tape.op("GatherND", [every, rows[int(layer)]], {"batch_dims": 2})
            present.name, present.type, sizes = every.name, every.type, list(every.shape or ())
            every.name = f"every.{layer}.{part}"
            every.shape = ir.Shape([*sizes[:2], None, *sizes[3:]])
            present.shape = ir.Shape([*sizes[:2], PRESENT, *sizes[3:]])
            graph.outputs[place] = present
        for value in (*named(graph.inputs, ".key"), *named(graph.inputs, ".value")):
            sizes = list(value.shape or ())
            value.shape = ir.Shape([*sizes[:2], PAST, *sizes[3:]])
        graph.outputs.append(kept)
        graph.extend(tape.nodes)
