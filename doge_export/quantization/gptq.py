"""GPTQ: the columns that are not rounded yet compensate for the error of each rounded column.

Minimises |(W - W') X|^2 over the codes, where H = X X^T is the Gram matrix of the inputs on calibration text. Columns
are rounded in order; with U the upper Cholesky factor of H^-1, the error of column i, (w_i - w'_i) / U_ii, goes to each
later column j times U_ij. A block's scales are fitted when its turn comes, to the weights as they then are.

Frantar, Ashkboos, Hoefler, Alistarh, GPTQ, https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import numpy as np

from doge_export.quantization.blocks import Blocks
from doge_export.quantization.rounding import fitted

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: bounds the correction by what the calibration text tells."""


def gptq(
    weight: np.ndarray, gram: np.ndarray, bits: int, block: int, *, symmetric: bool = True, damping: float = DAMPING
) -> Blocks:
    """Quantize a weight.

    Args:
        weight: float32 [N, K].
        gram: X X^T [K, K] of the inputs X [K, tokens].
        bits: size of a code.
        block: weights that share a scale; divides K.
        symmetric: no zero points.
        damping: see `DAMPING`.
    """
    rows, width = weight.shape
    hessian = gram.astype(np.float64)
    diagonal = np.diagonal(hessian)
    mean = diagonal.mean() or 1.0
    hessian = hessian + damping * mean * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    importance = (1 / np.diagonal(upper) ** 2).astype(np.float32)
    rest = weight.astype(np.float32).copy()
    last, blocks = 2**bits - 1, width // block
    codes = np.empty((rows, blocks, block), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.full((rows, blocks), 2 ** (bits - 1), np.uint8)
    for index in range(blocks):
        columns = slice(index * block, (index + 1) * block)
        part = fitted(rest[:, columns], bits, block, importance[columns], symmetric=symmetric)
        scale = part.scales[:, 0]
        zero = zeros[:, 0] if part.zero_points is None else part.zero_points[:, 0]
        scales[:, index], zeros[:, index] = scale, zero
        zero = zero.astype(np.float32)
        safe = np.where(scale == 0, np.float32(1), scale)
        errors = np.empty((rows, block), np.float32)
        for offset in range(block):
            column = columns.start + offset
            code = np.clip(np.rint(rest[:, column] / safe) + zero, 0, last)
            codes[:, index, offset] = code
            error = (rest[:, column] - (code - zero) * scale) / upper[column, column]
            errors[:, offset] = error
            rest[:, column : columns.stop] -= np.outer(error, upper[column, column : columns.stop])
        rest[:, columns.stop :] -= errors @ upper[columns, columns.stop :]
    return Blocks(bits, codes, scales, None if symmetric else zeros)
