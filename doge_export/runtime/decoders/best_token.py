"""The likeliest token of logits that lie on a device, found there: two numbers of a row travel, not the vocabulary.

onnxruntime computes graphs alone, so this is one, of five nodes. The base install has no package that writes ONNX
files; what such a file needs of protobuf is a dozen lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from doge_export.runtime.graph import running

_FLOAT, _INT64 = 1, 7
"""Types of tensors in an ONNX file."""


class BestToken:
    """A session that finds the highest logit of each row, where the logits lie.

    Args:
        providers: execution providers of onnxruntime.
    """

    def __init__(self, providers: Sequence[object]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(best_token_model(), options, providers=providers)

    def __call__(self, logits: OrtValue) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids [B] of the highest of the logits, float32 [B, 1, V], and these; NaN for a row that has one."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("logits", logits)
        for name in ("token", "best", "is_nan"):
            binding.bind_output(name)
        with running():
            self._session.run_with_iobinding(binding)
        token, best, is_nan = (each[:, 0] for each in binding.copy_outputs_to_cpu())
        return token, np.where(is_nan > 0, np.float32(np.nan), best)


def best_token_model() -> bytes:
    """Return the graph: float32 logits [B, S, V] to token int64 [B, S], best float32 [B, S], is_nan float32 [B, S]."""
    last = [_attribute("axis", -1), _attribute("keepdims", 0)]
    over_last = [_attribute("axes", [-1]), _attribute("keepdims", 0)]
    nodes = [
        _node("ArgMax", "logits", "token", last),
        _node("ReduceMax", "logits", "best", over_last),
        _node("IsNaN", "logits", "nans", []),
        _node("Cast", "nans", "ones", [_attribute("to", _FLOAT)]),
        _node("ReduceMax", "ones", "is_nan", over_last),
    ]
    outputs = [_value("token", _INT64, "BS"), _value("best", _FLOAT, "BS"), _value("is_nan", _FLOAT, "BS")]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"best_token")
    graph += _field(11, _value("logits", _FLOAT, "BSV")) + b"".join(_field(12, output) for output in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 17))  # IR version 8, opset 17


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # negative ones take ten bytes
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(operator: str, taken: str, given: str, attributes: Sequence[bytes]) -> bytes:
    named = _field(1, taken.encode()) + _field(2, given.encode()) + _field(4, operator.encode())
    return named + b"".join(_field(5, attribute) for attribute in attributes)


def _attribute(name: str, value: int | list[int]) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _field(3, value) + _field(20, 2)
    return _field(1, name.encode()) + b"".join(_field(8, each) for each in value) + _field(20, 7)


def _value(name: str, kind: int, extents: str) -> bytes:
    shape = b"".join(_field(1, _field(2, extent.encode())) for extent in extents)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))
