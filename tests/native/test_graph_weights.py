"""Numbers that the codes of a graph stand for, against the arithmetic of MatMulNBits written out."""

from __future__ import annotations

import numpy as np
import pytest

from doge_export.runtime.native.graph_weights import Part

ROWS, COLUMNS, BLOCK = 3, 32, 16


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_as_numbers(bits):
    random = np.random.default_rng(bits)
    codes = random.integers(0, 256, (ROWS, COLUMNS * bits // 8), dtype=np.uint8)
    codes[0, :2] = 0, 255  # both ends of the range
    scales = random.uniform(0.01, 0.1, (ROWS, COLUMNS // BLOCK)).astype(np.float32)
    part = Part(bits, COLUMNS, codes=codes, scales=scales)
    expected = np.empty((ROWS, COLUMNS), np.float32)
    for row in range(ROWS):
        for column in range(COLUMNS):
            byte, shift = divmod(column * bits, 8)  # of two 4-bit codes the low half is the first
            code = int(codes[row, byte]) >> shift & 2**bits - 1
            expected[row, column] = np.float32(code - 2 ** (bits - 1)) * scales[row, column // BLOCK]
    found = part.float32()
    assert found.dtype == np.float32 and part.block == BLOCK
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(part[1:].float32(), expected[1:])


def test_floats_are_what_they_are():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Part(32, 3, values).float32(), values)
