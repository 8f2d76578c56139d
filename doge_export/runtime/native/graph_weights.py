"""The matrices and vectors of a model, found by name in a graph that was lowered for onnxruntime.

Names are canonical (`checkpoint.naming`) but for what the passes of the target and the quantization do to them:

    A.weight_t            TransposeWeights     A [N, K], stored [K, N]
    B.weight_v            FoldScores           dt_proj after v_proj as one matrix of the input; a row for each query
                                               head, or one for each score head where keys are selected
    A_by_head             FoldScores           A repeated likewise
    A.weight_t+B.weight_t FuseProjections      the rows of A, then those of B, stored [K, NA + NB]
    q.weight+k.weight     GroupQueryAttention  a norm's weight repeated for every head of q, then for those of k
    NAME.q8, .q4, .scales QuantizeWeights      codes [N, K / block, bytes] and scales [N, K / block] of NAME
    NAME.1.q8, ...                             further rows of NAME, where its rows are not all stored alike
    NAME.float32                               rows of NAME that stay float32, stored [K, rows]
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from doge_export.package.onnx_weights import OnnxWeights

_FURTHER_ROWS = re.compile(r".*\.\d+", re.DOTALL)


class Unexpected(Exception):
    """The graph has a weight in another form than the passes give it; the text says which."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Rows of a matrix that are stored alike.

    Attributes:
        bits: 32, 8 or 4.
        columns: K, number of inputs.
        values: float32 [rows, K] (a view of the file, as a rule transposed), for 32 bits.
        codes: uint8 [rows, bytes] as the graph packs them; the low half of a byte is the first of two 4-bit codes.
        scales: float32 [rows, K / block].
    """

    bits: int
    columns: int
    values: np.ndarray | None = None
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.values if self.values is not None else self.codes)  # type: ignore[arg-type]

    @property
    def block(self) -> int:
        """Number of codes that share a scale; 0 for floats."""
        return 0 if self.scales is None else self.columns // self.scales.shape[1]

    def __getitem__(self, rows: slice) -> Part:
        values, codes, scales = (None if a is None else a[rows] for a in (self.values, self.codes, self.scales))
        return Part(self.bits, self.columns, values, codes, scales)

    def float32(self) -> np.ndarray:
        """Return the rows as numbers, float32 [rows, K]."""
        if self.values is not None:
            return self.values
        scales = np.repeat(self.scales, self.block, axis=1)  # type: ignore[arg-type]
        return (self.unpacked_codes().astype(np.float32) - 2.0 ** (self.bits - 1)) * scales

    def unpacked_codes(self) -> np.ndarray:
        """Return the codes one a byte, uint8 [rows, K]."""
        if self.codes is None:
            raise ValueError("floats have no codes")
        if self.bits == 8:
            return np.ascontiguousarray(self.codes)
        codes = np.empty((self.rows, self.columns), np.uint8)
        codes[:, ::2], codes[:, 1::2] = self.codes & 15, self.codes >> 4
        return codes


Matrix = list[Part]
"""Rows of a matrix, in order."""


class GraphWeights:
    """Weights of a lowered graph by canonical name.

    Args:
        weights: of the graph.
    """

    def __init__(self, weights: OnnxWeights) -> None:
        self._weights = weights
        self._fused: dict[str, tuple[str, int]] = {}  # name of a fused part -> whole name and place in it
        for stored in weights:
            whole = _without_ending(stored)
            if _FURTHER_ROWS.fullmatch(whole):
                continue
            for place, name in enumerate(whole.split("+")):
                self._fused.setdefault(name, (whole, place))

    def __contains__(self, name: str) -> bool:
        return name in self._fused

    def vector(self, name: str, size: int) -> np.ndarray:
        """Return a float32 vector.

        Raises:
            Unexpected: there is none of that name and size.
        """
        if name not in self._weights:
            raise Unexpected(f"it has no {name}")
        return self._float32(name, (size,))

    def head_norm(self, query: str, key: str, heads: int, kv_heads: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the norms of queries and keys, float32 [D] each, which may be one weight with a row for each head."""
        if f"{query}+{key}" not in self._weights:
            return self.vector(query, size), self.vector(key, size)
        rows = self._float32(f"{query}+{key}", (heads + kv_heads, size))
        if (rows[:heads] != rows[0]).any() or (rows[heads:] != rows[heads]).any():
            raise Unexpected(f"the heads of {query} have different norms")
        return rows[0], rows[heads]

    def linear(self, name: str, rows: dict[str, int], columns: int) -> Matrix:
        """Return the matrix [N, K] of a linear layer.

        Args:
            name: of the stored matrix, such as model.layers.0.self_attn.q_proj.weight_t.
            rows: numbers of rows by name, of all matrices that it may be fused with.
            columns: K.

        Raises:
            Unexpected: it is not there, or of another shape.
        """
        if name not in self._fused:
            raise Unexpected(f"it has no {name}")
        whole, place = self._fused[name]
        names = whole.split("+")
        unknown = [each for each in names if each not in rows]
        if unknown:
            raise Unexpected(f"{name} is fused with {unknown[0]}, of which nothing is known")
        first = sum(rows[each] for each in names[:place])
        matrix = self._whole(whole, sum(rows[each] for each in names), columns, transposed=True)
        return _rows(matrix, first, first + rows[name])

    def table(self, name: str, rows: int, columns: int) -> Matrix:
        """Return a matrix [N, K] that is stored by rows, as tables are.

        Raises:
            Unexpected: it is not there, or of another shape.
        """
        if name not in self._fused:
            raise Unexpected(f"it has no {name}")
        return self._whole(name, rows, columns, transposed=False)

    def _whole(self, name: str, rows: int, columns: int, *, transposed: bool) -> Matrix:
        if name in self._weights:
            shape = (columns, rows) if transposed else (rows, columns)
            values = self._float32(name, shape)
            return [Part(32, columns, values.T if transposed else values)]
        matrix = list(self._pieces(name, columns))
        if sum(part.rows for part in matrix) != rows:
            raise Unexpected(f"{name} has {sum(part.rows for part in matrix)} rows, expected {rows}")
        return matrix

    def _pieces(self, name: str, columns: int) -> Iterator[Part]:
        for number in range(2**16):
            piece = name if number == 0 else f"{name}.{number}"
            if f"{piece}.float32" in self._weights:
                stored = self._weights.shape(f"{piece}.float32")
                values = self._float32(f"{piece}.float32", (columns, stored[-1] if stored else 0))
                yield Part(32, columns, values.T)
                continue
            bits = next((bits for bits in (8, 4) if f"{piece}.q{bits}" in self._weights), None)
            if bits is None:
                return
            if f"{piece}.zero_points" in self._weights:
                raise Unexpected(f"{piece} has zero points")
            yield self._codes(piece, bits, columns)

    def _codes(self, name: str, bits: int, columns: int) -> Part:
        codes, scales = self._weights[f"{name}.q{bits}"], self._array(f"{name}.scales", np.float32)
        if codes.dtype != np.uint8 or codes.ndim < 2 or math.prod(codes.shape[1:]) * 8 != columns * bits:
            raise Unexpected(f"{name} has no rows of {columns} codes")
        if scales.ndim != 2 or len(scales) != len(codes) or not scales.shape[1] or columns % scales.shape[1]:
            raise Unexpected(f"{name} has no scale for each of its blocks")
        return Part(bits, columns, codes=codes.reshape(len(codes), -1), scales=scales)

    def _float32(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self._array(name, np.float32)
        if array.shape != shape:
            raise Unexpected(f"{name} has shape {list(array.shape)}, expected {list(shape)}")
        return array

    def _array(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        if name not in self._weights:
            raise Unexpected(f"it has no {name}")
        array = self._weights[name]
        if array.dtype != dtype:
            raise Unexpected(f"{name} is {array.dtype}, expected {np.dtype(dtype)}")
        return array


def every(matrix: Matrix, step: int) -> Matrix:
    """Return every `step`-th row, from the first, of a matrix whose parts have a multiple of `step` rows."""
    if any(part.rows % step for part in matrix):
        raise Unexpected("the rows of one score are stored in different ways")
    return [part[::step] for part in matrix]


def _rows(matrix: Sequence[Part], first: int, last: int) -> Matrix:
    found, start = [], 0
    for part in matrix:
        low, high = max(first - start, 0), min(last - start, part.rows)
        if low < high:
            found.append(part[low:high])
        start += part.rows
    if sum(part.rows for part in found) != last - first:
        raise ValueError(f"rows {first} to {last} of a matrix of {start}")
    return found


def _without_ending(stored: str) -> str:
    """Return the name of the weight that an initializer stores, or stores the first rows of."""
    for ending in (".q8", ".q4", ".scales", ".zero_points", ".float32"):
        if stored.endswith(ending):
            return stored.removesuffix(ending)
    return stored
