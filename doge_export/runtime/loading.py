"""Opening an exported folder, whatever it was exported for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest
from doge_export.runtime.classification_session import ClassificationSession
from doge_export.runtime.decoders.decoder import open_decoder
from doge_export.runtime.feature_session import FeatureSession
from doge_export.runtime.generation_config import GenerationConfig, is_integer
from doge_export.runtime.graph import graph_file, open_graph
from doge_export.runtime.session import Session
from doge_export.runtime.task_session import TaskSession, WrongTask
from doge_export.runtime.tokenizer import Tokenizer

Kind = TypeVar("Kind", bound=TaskSession)


def load(
    folder: str | Path,
    *,
    precision: str | None = None,
    threads: int | None = None,
    providers: str | Sequence[Any] | None = None,
) -> Session | FeatureSession | ClassificationSession:
    """Opens a folder that `doge-export onnx` wrote: the session of the task it was exported for.

    precision: "float32", "int8"...: which of the folder's graphs; by default float32 where it is there, else the first.
    threads: CPU threads of onnxruntime, by default as many as it finds best.
    providers: execution providers of onnxruntime in order of preference, or the name of one.
    Raises DogeExportError when `folder` is not such a folder or has no graph of that precision.
    """
    if threads is not None and (not is_integer(threads) or threads < 1):
        raise DogeExportError(f"threads is {threads!r}, expected 1 or more")
    folder = Path(folder)
    manifest = read_manifest(folder)
    tokenizer = Tokenizer.from_folder(folder)
    where: dict[str, Any] = {
        "threads": threads,
        "providers": [providers] if isinstance(providers, str) else providers,
    }
    graph = graph_file(folder, manifest, precision)
    if manifest["task"] == FeatureSession.task:
        return FeatureSession(open_graph(folder, graph, **where), tokenizer, manifest, folder)
    if manifest["task"] == ClassificationSession.task:
        return ClassificationSession(open_graph(folder, graph, **where), tokenizer, manifest, folder)
    generation_config = GenerationConfig.from_folder(folder)
    return Session(
        open_decoder(folder, manifest, precision=precision, **where), tokenizer, manifest, generation_config, folder
    )


def load_as(
    kind: type[Kind], folder: str | Path, *, purpose: str, precision: str | None = None, threads: int | None = None
) -> Kind:
    """The session of `folder`, which must be of this kind. Raises DogeExportError, before loading, where it is not.

    purpose: what needs it, for the message.
    """
    task = read_manifest(folder)["task"]
    if task != kind.task:
        raise WrongTask(Path(folder), task, purpose, kind.task)
    session = load(folder, precision=precision, threads=threads)
    assert isinstance(session, kind)
    return session
