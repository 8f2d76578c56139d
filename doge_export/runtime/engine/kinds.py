"""The two TensorRT that build and run engines. Each opens its own engines only."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Literal

KindName = Literal["tensorrt", "rtx"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A TensorRT.

    Attributes:
        name: as `--builder` and the sidecar name it.
        title: for messages.
        modules: names of its Python module; the first that can be imported is taken.
        extra: of doge-export that installs it.
        requirement: how pip names one version of it; {} stands for the version.
    """

    name: KindName
    title: str
    modules: tuple[str, ...]
    extra: str
    requirement: str


TENSORRT = Kind("tensorrt", "TensorRT", ("tensorrt",), "trt", "tensorrt=={}")
"""Builds on the GPU that is to run the engine, by trying kernels there."""
RTX = Kind(
    "rtx",
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "rtx",
    "tensorrt-rtx-cu13-libs=={0} tensorrt-rtx-cu13-bindings=={0}",
)
"""Builds anywhere, for GPUs that are named; the rest is compiled just in time on the GPU that runs the engine."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in (TENSORRT, RTX)}


def kind_of(trt: ModuleType) -> Kind:
    """Return the kind of an imported module."""
    return RTX if trt.__name__.partition(".")[0] in RTX.modules else TENSORRT


def title_of(trt: ModuleType) -> str:
    """Return title and version of an imported module: "TensorRT for RTX 1.7.1.116"."""
    return f"{kind_of(trt).title} {trt.__version__}"
