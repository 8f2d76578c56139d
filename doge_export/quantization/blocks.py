"""Weights in blocks: w = scale * (code - zero point), one scale and zero point for each run of weights of a row.

Codes are unsigned, as onnxruntime's MatMulNBits and GatherBlockQuantized read them. A symmetric block has no zero point
of its own: it is the middle code, 2^(bits - 1).
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """A weight [N, K] in blocks along K.

    Attributes:
        bits: size of a code.
        codes: uint8 [N, K / block, block], each below 2^bits.
        scales: float32 [N, K / block].
        zero_points: uint8 [N, K / block]; None where the middle code is zero.
    """

    bits: int
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None = None

    @property
    def block(self) -> int:
        """How many weights share a scale."""
        return int(self.codes.shape[2])

    def dequantized(self) -> np.ndarray:
        """Return the float32 weights [N, K] that the codes stand for."""
        middle = np.float32(2 ** (self.bits - 1))
        zero = middle if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        return ((self.codes - zero) * self.scales[..., None]).reshape(len(self.codes), -1)

    def rows(self, rows: slice) -> Blocks:
        """Return some of the N rows."""
        zeros = None if self.zero_points is None else self.zero_points[rows]
        return Blocks(self.bits, self.codes[rows], self.scales[rows], zeros)

    def packed_codes(self) -> np.ndarray:
        """Return uint8 [N, K / block, block * bits / 8]; of two 4-bit codes in a byte the first is the low half."""
        return _packed(self.codes, self.bits)

    def packed_zero_points(self) -> np.ndarray | None:
        """Return uint8 [N, ceil(K / block * bits / 8)], packed like the codes."""
        return None if self.zero_points is None else _packed(self.zero_points, self.bits)


StoredRows = tuple[slice, Blocks | None]
"""Rows of a weight (outputs of a linear layer, or entries of a table) and their blocks; None for float32."""


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4
