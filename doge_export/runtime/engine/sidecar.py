"""`engine.json`, beside the engine: what it is, what it wants to be bound to, and where it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError

ENGINE = "engine/model.engine"
SIDECAR = "engine/engine.json"
ONNX = "engine/model.onnx"
"""Names in a folder; the last only where the graph is kept."""

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class EngineTensor:
    """An input or output; `shape` holds sizes and the names of dynamic axes, `dtype` is float16, int32..."""

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return storage(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class CachePair:
    """Two names of one buffer, zeros at first, of `shape` at the largest batch."""

    past: str
    present: str
    dtype: str
    shape: tuple[int, ...]


Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What engine.json holds.

    Attributes:
        precision, attention: as asked for: "fp16", "plugin".
        max_batch, max_length, max_logits: the largest rows, tokens of a row, logits of a row in one run.
        inputs, outputs: by name, caches included.
        profiles: "prefill" and "decode", in the engine's order: input -> (min, opt, max) shapes.
        caches: what is bound in place.
        tensorrt: the version that built it. compute_capability, gpu: of the GPU it was built on.
        hardware: which GPUs it runs on: "none" the kind it was built on, "same" those of its compute capability,
            "ampere+" those from Ampere on. version_compatible: later TensorRT of the same major version run it too.
        plugin: name, sha256, schema of the plugin it calls; None where it calls none. plugin_embedded: it is in the
            engine. plugin_layers: how many layers call it.
        settings: what else the builder was told. onnx: sha256 and bytes of the graph it was built from.
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
    tensorrt: str
    compute_capability: tuple[int, int]
    gpu: str
    hardware: str
    version_compatible: bool
    plugin: dict[str, Any] | None
    plugin_embedded: bool
    plugin_layers: int
    settings: dict[str, Any]
    onnx: dict[str, Any]
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def write(self, folder: Path) -> None:
        """Into the folder of the engine."""
        (folder / SIDECAR).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_sidecar(folder: Path) -> Sidecar:
    """Of an engine's folder. Raises DogeExportError where there is none that this version reads."""
    file = folder / SIDECAR
    try:
        values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise DogeExportError(
                f"{file} has format {values['format']}, this doge-export reads up to {FORMAT}; install a newer one"
            )
        return _from_dict(values)
    except FileNotFoundError as error:
        raise DogeExportError(f"{folder} has no {SIDECAR}; build the engine again with `doge-export trt`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    major, minor = values["compute_capability"]
    known = {
        **values,
        "inputs": tensors(values["inputs"]),
        "outputs": tensors(values["outputs"]),
        "profiles": profiles,
        "caches": tuple(CachePair(**{**pair, "shape": tuple(pair["shape"])}) for pair in values["caches"]),
        "compute_capability": (int(major), int(minor)),
    }
    return Sidecar(**known)


def storage(dtype: str) -> np.dtype[Any]:
    """The numpy type that a tensor's elements are kept in; bfloat16, which numpy lacks, as 16 bits."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def as_float32(array: np.ndarray, dtype: str) -> np.ndarray:
    """The values of an array in `storage(dtype)`."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
