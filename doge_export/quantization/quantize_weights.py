"""Weights in blocks of few bits: MatMul becomes MatMulNBits, Gather becomes GatherBlockQuantized (com.microsoft).

GatherBlockQuantized needs onnxruntime 1.23, and the default WebAssembly build of onnxruntime-web has no kernel for it:
for graphs that are to run anywhere, standard operators read the same codes. That build's MatMulNBits unpacks the whole
weight at every token and takes 4 to 6 times as long as a float32 product; so a product, too, may be spelled in standard
operators, which onnxruntime folds into the float32 weight once, when it creates the session.

Requirements of onnxruntime's CPU kernels, beyond the documentation of the operators (onnxruntime 1.31):

- MatMulNBits must find codes, scales and zero points in initializers. Behind a node (a Cast of float16 scales, say)
  it runs with accuracy_level 4 only as long as the node is folded, and is silently wrong otherwise. Scales are of
  the type of the inputs, float32 or float16.
- Both operators can read one weight whose codes are [N, blocks, bytes], which GatherBlockQuantized takes for a table of
  matrices. It then wants scales [N, blocks, 1], a Reshape of the stored ones; 4-bit zero points would have to be
  stored a second time, unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.quantization.blocks import Blocks, StoredRows
from doge_export.quantization.weights import QuantizableWeight
from doge_export.targets.contract import ContractError, GraphPass, initializer, node_input
from doge_export.targets.lowering import constant, replace

ACCURACY_LEVEL = 4
"""4: inputs of linear layers are rounded to 8 bits block by block, so that products are of integers."""

HALF_ACCURACY_LEVEL = 0
"""0: float16 inputs are multiplied as they are. At level 4 onnxruntime 1.22's CPU computes other numbers altogether."""

Storage = Callable[[QuantizableWeight], Sequence[StoredRows]]
"""Returns the rows of a weight in order, from the first output to the last; all in one where the weight has lookups."""


class QuantizeWeights(GraphPass):
    """Rewrite the readers of every weight by its storage; a weight that is float32 in all rows stays as it is.

    Needs weights of the model it is run on. A weight with lookups needs blocks in one piece, and token ids of known
    rank.

    Args:
        weights: as `quantizable_weights` returns them for the graph.
        storage: decides how each is stored.
        standard_lookups: read tables with standard operators.
        expand: compute the float32 matrices of products from constants; they are as large and as fast as float32 ones.
    """

    def __init__(
        self,
        weights: Iterable[QuantizableWeight],
        storage: Storage,
        *,
        standard_lookups: bool = False,
        expand: bool = False,
    ) -> None:
        super().__init__()
        self._weights, self._storage = list(weights), storage
        self._standard_lookups, self._expand = standard_lookups, expand

    def requires(self, model: ir.Model) -> None:
        """Require initializers of this graph."""
        super().requires(model)
        for weight in self._weights:
            if model.graph.initializers.get(weight.name) is not weight.value:
                raise ContractError(weight.value, f"expected an initializer of graph {model.graph.name}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite weight by weight: one float32 weight is in memory at a time where the file is mapped."""
        self._graph = model.graph
        modified = False
        for weight in self._weights:
            pieces = self._storage(weight)
            if all(blocks is None for _, blocks in pieces):
                continue
            self._rewrite(weight, pieces)
            modified = True
        if any(node.domain == "com.microsoft" for node in model.graph):
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, weight: QuantizableWeight, pieces: Sequence[StoredRows]) -> None:
        stored = [self._store(weight, rows, blocks, number) for number, (rows, blocks) in enumerate(pieces)]
        pairs = list(zip(pieces, stored, strict=True)) if weight.products else []
        factors = [self._factor(weight, *pair) for pair in pairs]
        for node in weight.products:
            tape = Tape()
            parts = [factor(tape, node.inputs[0]) for factor in factors]
            replace(node, tape, [parts[0] if len(parts) == 1 else tape.op("Concat", parts, {"axis": -1})])
        for node in weight.lookups:
            if len(pieces) != 1 or pieces[0][1] is None:
                raise ContractError(node, f"expected the blocks of {weight.name} in one piece, found {len(pieces)}")
            blocks, values = pieces[0][1], stored[0]
            tape = Tape()
            if self._standard_lookups:
                rows = self._standard_lookup(tape, node, blocks, values)
            else:
                rows = self._lookup(tape, node, blocks, values, shared=bool(weight.products))
            replace(node, tape, [rows])
        for user, _ in weight.value.uses():  # the Transpose of a tied head
            self._graph.remove(user, safe=True)
        del self._graph.initializers[weight.name]

    def _store(self, weight: QuantizableWeight, rows: slice, blocks: Blocks | None, number: int) -> list[ir.Value]:
        """Register codes, scales and zero points, if there are any, as initializers; or one matrix [K, N] as it is."""
        name = weight.name if number == 0 else f"{weight.name}.{number}"
        if blocks is None:
            matrix = np.ascontiguousarray(weight.matrix()[rows].T, weight.dtype.numpy())
            return [self._initializer(f"{name}.{weight.dtype.name.lower()}", matrix)]
        codes, zeros = blocks.packed_codes(), blocks.packed_zero_points()
        if not weight.products:
            codes = codes.reshape(len(codes), -1)
        parts = {f"q{blocks.bits}": codes, "scales": blocks.scales.astype(weight.dtype.numpy())}
        if zeros is not None:
            parts["zero_points"] = zeros
        return [self._initializer(f"{name}.{ending}", array) for ending, array in parts.items()]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value

    def _factor(
        self, weight: QuantizableWeight, piece: StoredRows, stored: Sequence[ir.Value]
    ) -> Callable[[Tape, ir.Value | None], ir.Value]:
        """Return how an input is multiplied with some rows of a weight."""
        rows, blocks = piece
        if blocks is None or self._expand:
            matrix = stored[0] if blocks is None else self._expanded(blocks, stored)
            return lambda tape, x: tape.op("MatMul", [x, matrix])
        attributes = {
            "K": weight.shape[1],
            "N": rows.stop - rows.start,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": ACCURACY_LEVEL if weight.dtype == ir.DataType.FLOAT else HALF_ACCURACY_LEVEL,
        }
        return lambda tape, x: tape.op("MatMulNBits", [x, *stored], attributes, domain="com.microsoft")

    def _expanded(self, blocks: Blocks, stored: Sequence[ir.Value]) -> ir.Value:
        """Return the matrix [K, N] of constants, in the type of the scales, computed at the graph's beginning."""
        codes, scales, *zeros = stored
        if zeros:
            raise ContractError(codes, "expected symmetric blocks, found zero points")
        tape = Tape()
        rows, count = blocks.scales.shape
        by_block = constant(self._graph, np.array([rows, count, blocks.block]))
        factors = tape.op("Unsqueeze", [scales, constant(self._graph, np.array([-1]))])
        weights = tape.op("Mul", [self._centred(tape, codes, blocks.bits, by_block, scales), factors])
        flat = tape.op("Reshape", [weights, constant(self._graph, np.array([rows, -1]))])
        matrix = tape.op("Transpose", [flat], {"perm": [1, 0]})
        self._graph.insert_before(self._graph[0], tape.nodes)
        return matrix

    def _lookup(
        self, tape: Tape, node: ir.Node, blocks: Blocks, stored: Sequence[ir.Value], *, shared: bool
    ) -> ir.Value:
        codes, scales, *zeros = stored
        attributes = {"bits": blocks.bits, "block_size": blocks.block, "gather_axis": 0}

        def rows(scales: ir.Value, zeros: Sequence[ir.Value], axis: int) -> ir.Value:
            operands = [codes, node.inputs[1], scales, *zeros]
            return tape.op(
                "GatherBlockQuantized", operands, attributes | {"quantize_axis": axis}, domain="com.microsoft"
            )

        if not shared:
            return rows(scales, zeros, 1)
        deeper = constant(self._graph, np.array([*blocks.scales.shape, 1]))
        scales, *zeros = (tape.op("Reshape", [value, deeper]) for value in (scales, *zeros))
        return tape.op("Reshape", [rows(scales, zeros, 2), self._behind_ids(tape, node, -1)])

    def _standard_lookup(self, tape: Tape, node: ir.Node, blocks: Blocks, stored: Sequence[ir.Value]) -> ir.Value:
        """Return scale * (code - middle) of the rows that the ids name, [..., K] in the type of the scales."""
        codes, scales, *zeros = stored
        if zeros:
            raise ContractError(node, "expected symmetric blocks, found zero points")
        ids = node_input(node, 1)
        by_block = self._behind_ids(tape, node, blocks.codes.shape[1], blocks.block)
        centred = self._centred(tape, tape.op("Gather", [codes, ids], {"axis": 0}), blocks.bits, by_block, scales)
        last = constant(self._graph, np.array([-1]))
        factors = tape.op("Unsqueeze", [tape.op("Gather", [scales, ids], {"axis": 0}), last])
        return tape.op("Reshape", [tape.op("Mul", [centred, factors]), self._behind_ids(tape, node, -1)])

    def _centred(self, tape: Tape, packed: ir.Value, bits: int, shape: ir.Value, scales: ir.Value) -> ir.Value:
        """Return packed codes, less the middle one, in the type of the scales, of a shape [..., K / block, block]."""
        dtype = initializer(scales)[1].dtype

        def number(value: float) -> ir.Value:
            return constant(self._graph, np.array(value, dtype.numpy()))

        codes = tape.op("Cast", [packed], {"to": dtype})
        if bits == 4:
            high = tape.op("Floor", [tape.op("Mul", [codes, number(1 / 16)])])
            low = tape.op("Sub", [codes, tape.op("Mul", [high, number(16)])])
            last = constant(self._graph, np.array([-1]))
            halves = [tape.op("Unsqueeze", [half, last]) for half in (low, high)]
            codes = tape.op("Concat", halves, {"axis": -1})
        return tape.op("Sub", [tape.op("Reshape", [codes, shape]), number(2 ** (bits - 1))])

    def _behind_ids(self, tape: Tape, node: ir.Node, *sizes: int) -> ir.Value:
        """Return the shape of a lookup's ids, followed by these sizes."""
        ids = node_input(node, 1)
        if ids.shape is not None:
            return constant(self._graph, np.array([*[0] * len(ids.shape), *sizes]))  # 0: as it is
        behind = constant(self._graph, np.array(sizes))
        return tape.op("Concat", [tape.op("Shape", [ids]), behind], {"axis": 0})
