"""Devices that onnxruntime runs a graph on."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.runtime.graph import graph_file, open_graph

Device = tuple[str, int]
"""onnxruntime's name of a device, and its number."""

CPU: Device = ("cpu", 0)


def parsed_device(text: str | None) -> Device:
    """Return the device that "cpu", "cuda" or "cuda:1" names; the CPU for None.

    Raises:
        DogeExportError: it is another text.
    """
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", "cpu" if text is None else str(text))
    if found is None:
        raise DogeExportError(f"device is {str(text)[:40]!r}, expected cpu, cuda, or cuda:N for the GPU of number N")
    return CPU if found[0] == "cpu" else ("cuda", int(found[1] or 0))


def check_runs_on_cuda(folder: Path, manifest: Manifest, precision: str | None) -> str:
    """Return the precision of the graph that onnxruntime can run on a GPU, which is fp16.

    Raises:
        DogeExportError: another one is asked for, or the folder has none.
    """
    if manifest.task != "text-generation":
        raise DogeExportError(f"device cuda runs models that write text, and {folder} is for {manifest.task}")
    if precision not in (None, "fp16"):
        raise DogeExportError(
            f"device cuda runs fp16 graphs, not {precision}: onnxruntime's GroupQueryAttention takes 16-bit floats "
            "alone there, no keys of 8 bits beside a bias, and products of 4 bits are not tried; leave --precision out"
        )
    if manifest.graph_of("fp16") is None and any(each.interface == "engine" for each in manifest.graphs.values()):
        raise DogeExportError(f"{folder} holds an engine, which runs on the GPU by itself: leave --device out")
    interface = manifest.graphs[graph_file(folder, manifest, "fp16")].interface
    if interface != "in-place":
        raise DogeExportError(
            f"device cuda runs graphs of target onnxruntime with unbounded caches, and {folder} has one of interface "
            f"{interface}: export again without --target and --cache"
        )
    return "fp16"


def open_graph_on_cuda(
    folder: Path, name: str, device: Device, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph on a GPU.

    Raises:
        DogeExportError: as for `open_graph`, or onnxruntime cannot use the GPU, which it would pass over in silence.
    """
    cuda = ("CUDAExecutionProvider", {"device_id": str(device[1])})
    session = open_graph(folder, name, threads=threads, providers=[cuda, "CPUExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise DogeExportError(
            f"onnxruntime cannot use {device[0]}:{device[1]}: no such GPU, no driver (nvidia-smi tells), or libraries "
            "of another CUDA than it was built for; leave --device out to run on the CPU"
        )
    return session
