"""Graphs of an exported folder, opened by onnxruntime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from doge_export.errors import DogeExportError, RunFailed
from doge_export.installing import install_command
from doge_export.memory import is_out_of_memory, out_of_memory
from doge_export.package.manifest import MODEL, Manifest
from doge_export.precision import ADDABLE, RENAMED
from doge_export.regular_file import check_files, is_there
from doge_export.runtime.threads import thread_count

_known = onnxruntime.capi.onnxruntime_pybind11_state
DAMAGED = (
    _known.InvalidProtobuf,
    _known.InvalidGraph,
    _known.InvalidArgument,
    _known.NotImplemented,
    _known.RuntimeException,
    _known.Fail,
    RuntimeError,
    UnicodeDecodeError,
)
"""Errors that onnxruntime raises for a file that is not a graph, or was damaged since it was written."""

MOST_EXACT_FIRST = ("fp32", "fp16", "int8", "int4", "q4f16")

CACHE_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}
"""NumPy type of a cache, by onnxruntime's name."""


def graph_file(folder: Path, manifest: Manifest, precision: str | None = None) -> str:
    """Return the name of the graph in `precision`; by default the most exact one.

    Raises:
        DogeExportError: the folder has no graph in that precision.
    """
    if precision is None:
        names = (manifest.graph_of(name) for name in MOST_EXACT_FIRST)
        return next((name for name in names if name is not None), None) or next(iter(manifest.graphs))
    if precision in RENAMED:
        raise DogeExportError(f"precision {precision} is called {RENAMED[precision]}; write that")
    found = manifest.graph_of(precision)
    if found is None:
        has = ", ".join(graph.precision for graph in manifest.graphs.values()) or "none"
        can_be_added = precision in ADDABLE and MODEL in manifest.graphs
        advice = f"; `doge-export quantize {folder} --precision {precision}` adds it" if can_be_added else ""
        raise DogeExportError(f"{folder} has no {precision} graph (it has {has}){advice}")
    return found


def open_graph(
    folder: Path, name: str = MODEL, *, threads: int | None = None, providers: Sequence[Any] | None = None
) -> onnxruntime.InferenceSession:
    """Open the graph of that name in `folder`.

    Args:
        folder: an exported folder.
        name: name of the graph, as in the manifest.
        threads: CPU threads; by default as many as suit a graph of that size, at most one for each physical core.
        providers: onnxruntime's execution providers; the CPU by default.

    Raises:
        DogeExportError: there is no such graph, it is damaged, or a provider is not installed.
    """
    file = folder / name
    if not is_there(file):
        raise DogeExportError(f"{folder} has no {name}; export it again")
    check_files(file.parent)  # external data is opened by names in the graph
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or thread_count(file)
    options.inter_op_num_threads = 1
    # The one warning here is that the input num_logits_to_keep has a default, which is intended; errors are raised too.
    options.log_severity_level = 4
    available = onnxruntime.get_available_providers()
    chosen = list(providers or ["CPUExecutionProvider"])
    unknown = [name for name in (p if isinstance(p, str) else p[0] for p in chosen) if name not in available]
    if unknown:
        raise DogeExportError(
            f"onnxruntime here has no {', '.join(unknown)} (it has {', '.join(available)}); "
            f"{install_command('gpu')} brings CUDA"
        )
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=chosen)
    except DAMAGED as error:
        if is_out_of_memory(error):
            raise RunFailed(out_of_memory(error)) from error
        raise DogeExportError(f"{file} is damaged (`doge-export verify` tells more); export it again") from error


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Turn the errors of onnxruntime while a graph runs into one line.

    Raises:
        RunFailed: the graph fails on its inputs, which no graph of ours does, or there is no memory.
    """
    try:
        yield
    except DAMAGED as error:
        if is_out_of_memory(error):
            raise RunFailed(out_of_memory(error)) from error
        reason = " ".join(str(error).split())[:300]
        raise RunFailed(
            f"onnxruntime fails to run the graph ({reason}); `doge-export verify` tells whether it was changed"
        ) from error
