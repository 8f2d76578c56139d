"""Reader of the weights of an ONNX file that neither copies them nor needs the package `onnx`.

`onnx_file` says how the message is laid out. Only what decides where weights lie is read: the names, types, shapes and
places of initializers. Nobody vouches for the file, so every length is compared with what is left before it is used.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.regular_file import is_there

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_TYPED_DATA = {4, 5, 6, 7, 10, 11}
"""Fields that hold numbers one by one, which no writer of this project uses for weights."""

DTYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}
"""NumPy type of a tensor by its number in ONNX; weights of other types are left out."""

_MOST_DIMS, _MOST_TENSORS, _LONGEST_NAME = 8, 2**20, 2**14
_LARGEST = 2**40


class Unreadable(Exception):
    """The bytes are not an ONNX file of the kind that this project writes; the text says why."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """An initializer: its type and shape, and the place of its bytes.

    Attributes:
        dtype: a key of `DTYPES`.
        shape: sizes of its axes.
        file: name of the file with its bytes; None for the graph's own.
        offset: first of its bytes in that file.
    """

    dtype: int
    shape: tuple[int, ...]
    file: str | None
    offset: int

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


class OnnxWeights:
    """The initializers of an ONNX file by name, as read-only arrays over the mapped file; use it in a `with` statement.

    Args:
        file: the graph. Weights outside it are taken from files beside it.

    Raises:
        DogeExportError: the file is not there, is no regular file, or is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._maps: dict[str | None, mmap.mmap] = {}
        try:
            data = self._mapped(None)
            self._tensors = dict(_initializers(data))
        except (Unreadable, OSError, ValueError) as error:
            self.close()
            raise DogeExportError(
                f"the weights in {file} cannot be read ({error}); `doge-export verify` tells whether it was changed"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; arrays that are still in use keep their part of it."""
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:  # an array still reads it; it is unmapped when that is gone
                continue
        self._maps = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without touching its bytes."""
        return self._tensors[name].shape

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a tensor.

        Raises:
            KeyError: there is none of that name.
            DogeExportError: its bytes lie beyond the end of their file, or in a file that is not there.
        """
        tensor = self._tensors[name]
        try:
            mapped = self._mapped(tensor.file)
        except (Unreadable, OSError, ValueError) as error:
            raise DogeExportError(
                f"the weight {name[:200]!r} of {self.file} cannot be read ({error}); `doge-export verify` tells more"
            ) from error
        if tensor.offset + tensor.nbytes > len(mapped):
            raise DogeExportError(
                f"the weight {name[:200]!r} of {self.file} ends beyond its file; `doge-export verify` tells more"
            )
        count = math.prod(tensor.shape)
        return np.frombuffer(mapped, DTYPES[tensor.dtype], count, tensor.offset).reshape(tensor.shape)

    def _mapped(self, name: str | None) -> mmap.mmap:
        if name not in self._maps:
            file = self.file if name is None else self.file.parent / name
            if not is_there(file):
                raise Unreadable(f"there is no file {file.name}")
            with file.open("rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                    raise Unreadable(f"{file.name} is empty" if status.st_size == 0 else f"{file.name} is no file")
                self._maps[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]


def _initializers(data: mmap.mmap) -> Iterator[tuple[str, StoredTensor]]:
    seen: set[str] = set()
    for number, graph in _fields(data, 0, len(data)):
        if number != _GRAPH or not isinstance(graph, range):
            continue
        for inner, part in _fields(data, graph.start, graph.stop):
            if inner != _INITIALIZER or not isinstance(part, range):
                continue
            name, tensor = _tensor(data, part)
            if name in seen or len(seen) >= _MOST_TENSORS:
                raise Unreadable(f"it has two weights {name[:200]!r}" if name in seen else "it has a million weights")
            seen.add(name)
            if tensor is not None:
                yield name, tensor


def _tensor(data: mmap.mmap, part: range) -> tuple[str, StoredTensor | None]:
    """Return an initializer's name and place; None for a place or type that weights of this project never have."""
    dims: list[int] = []
    dtype, name, raw, is_external, is_typed = 0, "", None, False, False
    external: dict[str, str] = {}
    for number, value in _fields(data, part.start, part.stop):
        if number == _DIMS:
            dims += _varints(data, value) if isinstance(value, range) else [value]
        elif number == _DATA_TYPE and isinstance(value, int):
            dtype = value
        elif number == _NAME and isinstance(value, range):
            name = _text(data, value)
        elif number == _RAW_DATA and isinstance(value, range):
            raw = value
        elif number == _EXTERNAL_DATA and isinstance(value, range):
            key, text = _entry(data, value)
            external[key] = text
        elif number == _DATA_LOCATION:
            is_external = value == 1
        elif number in _TYPED_DATA:
            is_typed = True
    if dtype not in DTYPES or is_typed:
        return name, None
    if len(dims) > _MOST_DIMS or any(not 0 <= size < 2**31 for size in dims) or math.prod(dims) > _LARGEST:
        raise Unreadable(f"the weight {name[:200]!r} has no possible shape")
    tensor = StoredTensor(dtype, tuple(dims), None, raw.start if raw is not None else 0)
    if is_external:
        return name, _outside(name, tensor, external)
    if raw is None or len(raw) != tensor.nbytes:
        raise Unreadable(f"the weight {name[:200]!r} has {len(raw or ())} bytes, its shape needs {tensor.nbytes}")
    return name, tensor


def _outside(name: str, tensor: StoredTensor, external: dict[str, str]) -> StoredTensor:
    location = external.get("location", "")
    if not location or Path(location).name != location or location in (".", "..") or "\\" in location:
        raise Unreadable(f"the weight {name[:200]!r} lies in {location[:200]!r}, which is no file beside it")
    numbers = {key: external.get(key, "0") for key in ("offset", "length")}
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers.values()):
        raise Unreadable(f"the weight {name[:200]!r} has no place in {location[:200]!r}")
    if "length" in external and int(numbers["length"]) != tensor.nbytes:
        raise Unreadable(f"the weight {name[:200]!r} has {numbers['length']} bytes, its shape needs {tensor.nbytes}")
    return dataclasses.replace(tensor, file=location, offset=int(numbers["offset"]))


def _entry(data: mmap.mmap, part: range) -> tuple[str, str]:
    texts = {number: _text(data, value) for number, value in _fields(data, part.start, part.stop) if number in (1, 2)}
    return texts.get(1, ""), texts.get(2, "")


def _text(data: mmap.mmap, value: Any) -> str:
    if not isinstance(value, range) or len(value) > _LONGEST_NAME:
        raise Unreadable("a name in it is no text")
    try:
        return data[value.start : value.stop].decode()
    except UnicodeDecodeError as error:
        raise Unreadable("a name in it is not UTF-8") from error


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | range]]:
    """Yield number and value of each field of a message: a number, or the range of its bytes."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at, end)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise Unreadable(f"it is no ONNX file: there is no field of kind {kind}")
        if length > end - at:
            raise Unreadable("it is cut off, or no ONNX file")
        yield number, range(at, at + length)
        at += length


def _varints(data: mmap.mmap, part: range) -> Iterator[int]:
    at = part.start
    if len(part) > 10 * _MOST_DIMS:
        raise Unreadable("a weight has no possible shape")
    while at < part.stop:
        value, at = _varint(data, at, part.stop)
        yield value


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise Unreadable("it is cut off, or no ONNX file")
