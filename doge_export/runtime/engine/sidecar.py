"""`engine.json`, beside the engine: its bindings, profiles and settings, and the machines that run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.json_file import parse_json
from doge_export.plugin.tensorrt_versions import release
from doge_export.regular_file import read_regular

ENGINE = "engine/model.engine"
SIDECAR = "engine/engine.json"
ONNX = "engine/model.onnx"
"""Names in a folder; ONNX only if the graph is kept."""

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class EngineTensor:
    """An input or output; `dtype` is "float16", "int32"..., `shape` holds sizes, and names of dynamic axes."""

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return storage(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class CachePair:
    """An input and an output that share a buffer, which starts as zeros; `shape` is that of the largest batch."""

    past: str
    present: str
    dtype: str
    shape: tuple[int, ...]


Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The contents of engine.json.

    Attributes:
        precision: "fp16", "bf16" or "fp32".
        attention: "plugin" or "native".
        max_batch: the most rows of one run.
        max_length: the most tokens of a row.
        max_logits: the most logits of a row in one run.
        inputs, outputs: by name, caches included.
        profiles: "prefill" and "decode", in the engine's order: input -> (min, opt, max) shapes.
        caches: inputs and outputs that share a buffer.
        builder: "tensorrt", or "rtx" for TensorRT for RTX.
        tensorrt: version of it that built the engine.
        compute_capabilities: that the engine is for; one of TensorRT: of the GPU that it was built on.
        gpu: name of that GPU; None for an engine of TensorRT for RTX, which needs none.
        hardware: GPUs that run the engine: "none" that kind only, "same" those of its compute capability, "ampere+"
            those from Ampere on. Always "same" for TensorRT for RTX.
        version_compatible: later TensorRT of the same major version run the engine too.
        plugin: name, sha256 and schema of the plugin that the engine calls; None if it calls none.
        plugin_embedded: the plugin is inside the engine.
        plugin_layers: number of layers that call the plugin.
        settings: other settings of the builder.
        engine: sha256 and bytes of the engine.
        onnx: sha256 and bytes of the graph that the engine was built from.
        format: of this file.
    """

    precision: str
    attention: str
    max_batch: int
    max_length: int
    max_logits: int
    inputs: dict[str, EngineTensor]
    outputs: dict[str, EngineTensor]
    profiles: dict[str, dict[str, Range]]
    caches: tuple[CachePair, ...]
    builder: str
    tensorrt: str
    compute_capabilities: tuple[tuple[int, int], ...]
    gpu: str | None
    hardware: str
    version_compatible: bool
    plugin: dict[str, Any] | None
    plugin_embedded: bool
    plugin_layers: int
    settings: dict[str, Any]
    engine: dict[str, Any]
    onnx: dict[str, Any]
    format: int = FORMAT

    @property
    def is_bounded(self) -> bool:
        """True if the caches keep the best keys alone, with slots that tell their places in the text."""
        return any(cache.past.endswith(".slots") for cache in self.caches)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def write(self, folder: Path) -> None:
        """Write engine.json into the folder of the engine."""
        (folder / SIDECAR).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_sidecar(folder: Path) -> Sidecar:
    """Read the sidecar of an engine's folder.

    Raises:
        DogeExportError: there is none, it is damaged, or it is of a newer format.
    """
    file = folder / SIDECAR
    try:
        values: Mapping[str, Any] = parse_json(read_regular(file))
        if values["format"] > FORMAT:
            raise DogeExportError(
                f"{file} has format {values['format']}, this doge-export reads up to {FORMAT}; install a newer one"
            )
        if values["format"] < FORMAT:
            raise DogeExportError(f"{file} is of an older doge-export; build the engine again with `doge-export trt`")
        return _from_dict(values)
    except FileNotFoundError as error:
        raise DogeExportError(f"{folder} has no {SIDECAR}; build the engine again with `doge-export trt`") from error
    except OSError as error:
        raise DogeExportError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DogeExportError(
            f"{file} is damaged ({error!r}); build the engine again with `doge-export trt`"
        ) from error


def _from_dict(values: Mapping[str, Any]) -> Sidecar:
    def tensors(of: Mapping[str, Any]) -> dict[str, EngineTensor]:
        return {name: EngineTensor(value["dtype"], tuple(value["shape"])) for name, value in of.items()}

    def three(shapes: Any) -> Range:
        low, best, high = map(tuple, shapes)
        return low, best, high

    profiles = {
        name: {key: three(shapes) for key, shapes in profile.items()} for name, profile in values["profiles"].items()
    }
    known = {
        **values,
        "inputs": tensors(values["inputs"]),
        "outputs": tensors(values["outputs"]),
        "profiles": profiles,
        "caches": tuple(CachePair(**{**pair, "shape": tuple(pair["shape"])}) for pair in values["caches"]),
        "compute_capabilities": tuple((int(major), int(minor)) for major, minor in values["compute_capabilities"]),
    }
    sidecar = Sidecar(**known)
    _check(sidecar)
    return sidecar


_DTYPES = ("float32", "float16", "bfloat16", "int32", "int64", "int8", "bool")
_LARGEST = 2**31 - 1


def _check(sidecar: Sidecar) -> None:
    """Check the values that sizes of buffers are computed from.

    Raises:
        ValueError, TypeError: one is of another type or size, or contradicts another.
    """
    for name in ("max_batch", "max_length", "max_logits"):
        if not _is_count(getattr(sidecar, name)):
            raise ValueError(f"{name} is {getattr(sidecar, name)!r}")
    for name in ("precision", "attention", "builder", "tensorrt", "hardware"):
        if not isinstance(getattr(sidecar, name), str):
            raise TypeError(f"{name} is no text")
    release(sidecar.tensorrt)
    if sidecar.plugin is not None and not isinstance(sidecar.plugin["schema"], int):
        raise TypeError(f"plugin is {sidecar.plugin!r}")
    if not isinstance(sidecar.gpu, str | None):
        raise TypeError("gpu is no text")
    if not sidecar.compute_capabilities:
        raise ValueError("compute_capabilities is empty")
    size = sidecar.engine["bytes"]
    if not isinstance(size, int) or size < 1 or not isinstance(sidecar.engine["sha256"], str):
        raise ValueError(f"engine is {sidecar.engine!r}")
    for name in ("version_compatible", "plugin_embedded"):
        if not isinstance(getattr(sidecar, name), bool):
            raise TypeError(f"{name} is neither true nor false")
    for name, tensor in (sidecar.inputs | sidecar.outputs).items():
        if tensor.dtype not in _DTYPES or not all(isinstance(size, str) or _is_count(size) for size in tensor.shape):
            raise ValueError(f"{name} has type {tensor.dtype!r} and shape {list(tensor.shape)}")
    for profile in ("prefill", "decode"):
        if not all(
            _is_count(size) for shapes in sidecar.profiles[profile].values() for shape in shapes for size in shape
        ):
            raise ValueError(f"a shape of profile {profile} holds what is no size")
    for cache in sidecar.caches:
        for of, name in ((sidecar.inputs, cache.past), (sidecar.outputs, cache.present)):
            tensor = of[name]
            sizes = zip(tensor.shape[1:], cache.shape[1:], strict=True)
            if tensor.dtype != cache.dtype or any(isinstance(size, int) and size != own for size, own in sizes):
                raise ValueError(f"the buffer of {name} is {cache.dtype} {list(cache.shape)}, unlike the tensor")
        if not all(_is_count(size) for size in cache.shape) or cache.shape[0] != sidecar.max_batch:
            raise ValueError(f"the buffer of {cache.past} has shape {list(cache.shape)}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST


def storage(dtype: str) -> np.dtype[Any]:
    """Return the numpy type that holds a tensor's elements: uint16 for bfloat16, which numpy lacks."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def as_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values of an array that is stored as `storage(dtype)`."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
