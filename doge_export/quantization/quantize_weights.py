"""Weights in blocks of few bits: MatMul becomes MatMulNBits, Gather becomes GatherBlockQuantized (com.microsoft).

What onnxruntime's CPU kernels ask for, beyond the documentation of the operators (onnxruntime 1.31):

- MatMulNBits must find codes, scales and zero points in initializers. Behind a node (a Cast of float16 scales, say)
  it runs with accuracy_level 4 only as long as the node is folded, and is silently wrong otherwise. Scales are float32.
- Both operators read one weight where the codes are [N, blocks, bytes]: GatherBlockQuantized takes that for a table of
  matrices. It wants its scales as [N, blocks, 1], which a Reshape makes of those that are stored; and 4-bit zero points
  would have to be stored a second time, unpacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export.quantization.blocks import Blocks
from doge_export.quantization.weights import Site
from doge_export.targets.lowering import constant, replace

ACCURACY_LEVEL = 4
"""Inputs of linear layers are rounded to 8 bits for each block, so that products are of integers."""

Piece = tuple[slice, Blocks | None]
"""Outputs of a linear layer, or entries of a table, and how they are stored; None for float32."""


class Storage(Protocol):
    """Decides for a site: its pieces in order, from the first output to the last."""

    def __call__(self, site: Site) -> Sequence[Piece]:
        """One piece where the site has a lookup."""


class QuantizeWeights(ir.passes.InPlacePass):
    """Rewrites every site by what `storage` says of it; one that is float32 in one piece stays as it is."""

    def __init__(self, sites: Iterable[Site], storage: Storage) -> None:
        super().__init__()
        self._sites, self._storage = sites, storage

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Site by site: of the float32 weights, one is in memory at a time where the file is mapped."""
        self._graph = model.graph
        modified = False
        for site in self._sites:
            pieces = self._storage(site)
            if all(blocks is None for _, blocks in pieces):
                continue
            self._rewrite(site, pieces)
            modified = True
        if modified:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)

    def _rewrite(self, site: Site, pieces: Sequence[Piece]) -> None:
        stored = [self._store(site, rows, blocks, number) for number, (rows, blocks) in enumerate(pieces)]
        for node in site.products:
            tape = Tape()
            parts = [self._product(tape, node.inputs[0], site, *piece) for piece in zip(pieces, stored, strict=True)]
            replace(node, tape, [parts[0] if len(parts) == 1 else tape.op("Concat", parts, {"axis": -1})])
        for node in site.lookups:
            ((_, blocks),), (values,) = pieces, stored
            assert blocks is not None
            tape = Tape()
            replace(node, tape, [self._lookup(tape, node, blocks, values, shared=bool(site.products))])
        for user, _ in site.value.uses():  # the Transpose of a tied head
            self._graph.remove(user, safe=True)
        del self._graph.initializers[site.name]

    def _store(self, site: Site, rows: slice, blocks: Blocks | None, number: int) -> list[ir.Value]:
        """Initializers: codes, scales and, where there are any, zero points; or one float32 matrix [K, N]."""
        name = site.name if number == 0 else f"{site.name}.{number}"
        if blocks is None:
            return [self._initializer(f"{name}.float32", np.ascontiguousarray(site.weight()[rows].T))]
        codes, zeros = blocks.packed_codes(), blocks.packed_zero_points()
        if not site.products:
            codes = codes.reshape(len(codes), -1)
        parts = {f"q{blocks.bits}": codes, "scales": blocks.scales}
        if zeros is not None:
            parts["zero_points"] = zeros
        return [self._initializer(f"{name}.{ending}", array) for ending, array in parts.items()]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value

    def _product(
        self, tape: Tape, x: ir.Value | None, site: Site, piece: Piece, stored: Sequence[ir.Value]
    ) -> ir.Value:
        rows, blocks = piece
        if blocks is None:
            return tape.op("MatMul", [x, *stored])
        attributes = {
            "K": site.shape[1],
            "N": rows.stop - rows.start,
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": ACCURACY_LEVEL,
        }
        return tape.op("MatMulNBits", [x, *stored], attributes, domain="com.microsoft")

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
        ids = node.inputs[1]
        assert ids is not None and ids.shape is not None
        flat = constant(self._graph, np.array([*[0] * len(ids.shape), -1]))
        return tape.op("Reshape", [rows(scales, zeros, 2), flat])
