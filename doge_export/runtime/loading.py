"""Openers of exported folders: the session of the folder's task, and the decoder of its graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import onnxruntime

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.manifest import Manifest, read_manifest
from doge_export.package.verify import verify as verify_folder
from doge_export.regular_file import is_there
from doge_export.runtime.classification_session import ClassificationSession
from doge_export.runtime.decoders.bounded import BoundedDecoder
from doge_export.runtime.decoders.decoder import Decoder, SequenceLimits
from doge_export.runtime.decoders.growing import GrowingDecoder, GrowingScoresDecoder
from doge_export.runtime.decoders.in_place import InPlaceDecoder
from doge_export.runtime.decoders.native import NativeDecoder
from doge_export.runtime.decoders.native_bounded import BoundedNativeDecoder
from doge_export.runtime.decoders.on_device import OnDeviceDecoder
from doge_export.runtime.device import CPU, Device, check_runs_on_cuda, open_graph_on_cuda, parsed_device
from doge_export.runtime.feature_session import FeatureSession
from doge_export.runtime.generation_config import GenerationConfig, is_integer
from doge_export.runtime.graph import graph_file, open_graph
from doge_export.runtime.hub_folder import local_folder
from doge_export.runtime.interface import check_interface
from doge_export.runtime.native.backend import native_library, open_native, open_weight_file
from doge_export.runtime.native.classifier import Classifier
from doge_export.runtime.native.interface import NativeModel
from doge_export.runtime.native.support import Backend, NotNative, cache_kind, can_drop_keys, check_graph
from doge_export.runtime.one_call import GraphCall, NativeCall, OneCall
from doge_export.runtime.session import Session
from doge_export.runtime.task_session import TaskSession, WrongTask
from doge_export.runtime.threads import FEW, check_threads
from doge_export.runtime.tokenizer import Tokenizer

NATIVE_BY_DEFAULT = True
"""Whether a folder that the native decoder runs is run by it where no backend and no execution provider is asked for.

Not where it has plain C++ alone for the processor, which onnxruntime's kernels outrun.
"""

MAX_WAIT = 10**6
"""Most seconds that `wait` may be, eleven days; a number beyond is a slip."""

Kind = TypeVar("Kind", bound=TaskSession)
Opened = TypeVar("Opened")

_DECODERS: dict[str, Callable[[onnxruntime.InferenceSession, SequenceLimits], Decoder]] = {
    "in-place": InPlaceDecoder,
    "growing": GrowingDecoder,
    "growing-scores": GrowingScoresDecoder,
    "bounded": BoundedDecoder,
}


def load(
    folder: str | Path,
    *,
    precision: str | None = None,
    threads: int | None = None,
    providers: str | Sequence[Any] | None = None,
    backend: Backend | None = None,
    window: int | None = None,
    device: str | None = None,
    wait: float | None = None,
    verify: bool = False,
    digest: str | None = None,
    allow_host_code: bool = False,
) -> Session | FeatureSession | ClassificationSession:
    """Open a folder that `doge-export onnx` or `doge-export trt` wrote.

    Args:
        folder: an exported folder, or the hub id of one.
        precision: precision of the graph to run: "fp32", "fp16", "int8", "int4" or "q4f16"; by default the most exact
            one of the folder, which is fp32 as a rule.
        threads: CPU threads of onnxruntime; by default as many as suit the graph's size.
        providers: execution providers of onnxruntime in order of preference, or the name of one.
        backend: "native" for the native decoder, "graph" for onnxruntime over the folder's graph. None: the native
            decoder where it is there and computes this model, else the graph; the graph where `providers` are given.
        window: number of keys that a token sees of each layer and head, those of highest score; fewer than the model
            was trained with (its keep_window_size), so that answers are approximate, in less memory and time. None:
            as trained.
        device: "cuda", or "cuda:1" for the GPU of that number: onnxruntime runs the folder's fp16 graph there, with its
            caches. None or "cpu": the CPU. Not run on a GPU yet.
        wait: most seconds that a call waits for another one's answer on the same session to end, before it raises
            SessionBusy; None without end, 0 not at all. It is of answers: calls for features and classes never raise.
        verify: compare every file with the manifest before anything of the folder is opened.
        digest: sha256 that the manifest must have, as `doge-export verify` prints it; it implies `verify`.
        allow_host_code: let an engine run code for the CPU that it contains, as engines built with
            --version-compatible or an embedded plugin do. It is as a program of whoever made the folder.

    Returns:
        The session of the task that the folder was exported for.

    Raises:
        DogeExportError: `folder` is not an exported folder, or has no graph of that precision.
    """
    check_threads(threads)
    _check_backend(backend, providers)
    place = _checked_device(device, backend, providers)
    if wait is not None and not (isinstance(wait, (int, float)) and 0 <= wait <= MAX_WAIT):
        raise DogeExportError(f"wait is {wait!r}, expected seconds from 0 to {MAX_WAIT}, or None to wait without end")
    folder = local_folder(folder)
    manifest = verify_folder(folder, digest) if verify or digest is not None else read_manifest(folder)
    tokenizer = Tokenizer.from_folder(folder)
    where: dict[str, Any] = {
        "threads": threads,
        "providers": [providers] if isinstance(providers, str) else providers,
    }
    if place != CPU:
        precision = check_runs_on_cuda(folder, manifest, precision)
    name = graph_file(folder, manifest, precision)

    if window is not None and manifest.task != Session.task:
        raise DogeExportError(f"a window is of caches, {folder} is for {manifest.task} and has none: leave it out")
    if manifest.task == FeatureSession.task:
        return FeatureSession(_open_one_call(folder, manifest, name, backend, **where), tokenizer, manifest, folder)
    if manifest.task == ClassificationSession.task:
        model = _open_one_call(folder, manifest, name, backend, **where)
        return ClassificationSession(model, tokenizer, manifest, folder)
    generation_config = GenerationConfig.from_folder(folder)
    for note in generation_config.notes:
        warnings.warn(note, stacklevel=2)
    decoder = open_decoder(
        folder,
        manifest,
        precision=precision,
        backend=backend,
        window=window,
        device=place,
        allow_host_code=allow_host_code,
        **where,
    )
    return Session(decoder, tokenizer, manifest, generation_config, folder, wait, name)


def load_as(
    kind: type[Kind], folder: str | Path, *, purpose: str, precision: str | None = None, **options: Any
) -> Kind:
    """Open an exported folder that must be of the task of `kind`.

    Args:
        kind: class of the session.
        folder: an exported folder.
        purpose: command or method that needs the session, for the message.
        precision: see `load`.
        options: further keyword arguments of `load`.

    Raises:
        DogeExportError: as for `load`.
        WrongTask: the folder was exported for another task; raised before a graph is loaded.
    """
    folder = local_folder(folder)
    task = read_manifest(folder).task
    if task != kind.task:
        raise WrongTask(Path(folder), task, purpose, kind.task)
    session = load(folder, precision=precision, **options)
    if not isinstance(session, kind):
        raise TypeError(f"{folder} was loaded as {type(session).__name__}, expected {kind.__name__}")
    return session


def open_decoder(
    folder: Path,
    manifest: Manifest,
    *,
    precision: str | None = None,
    threads: int | None = None,
    providers: Sequence[Any] | None = None,
    backend: Backend | None = None,
    window: int | None = None,
    device: Device = CPU,
    allow_host_code: bool = False,
) -> Decoder:
    """Open the decoder for the interface that the manifest records of a graph.

    An engine ignores `threads` and `providers`.

    Args:
        folder: an exported folder of task text-generation.
        manifest: its manifest.
        precision, threads, providers, backend, window, allow_host_code: see `load`.
        device: where the graph runs; one that `check_runs_on_cuda` accepts.

    Raises:
        DogeExportError: as for `load`, or this version has no decoder for the interface.
    """
    name = graph_file(folder, manifest, precision)
    interface = manifest.graphs[name].interface
    limits = SequenceLimits.of(manifest)
    window = None if window is None else smaller_window(manifest, window)
    if interface == "engine":
        if window is not None:
            raise _engine_has_window(folder)
        if backend == "native":
            raise DogeExportError(f"{folder} holds an engine for a GPU, and the native decoder runs graphs")
        from doge_export.runtime.engine.bounded_decoder import open_engine_decoder

        return open_engine_decoder(folder, limits, allow_host_code)
    if interface == "native":
        is_graph = backend == "graph" or bool(providers)
        return _native_folder_decoder(folder, manifest, name, threads, window, is_graph=is_graph)
    if interface not in _DECODERS:
        raise DogeExportError(
            f"{folder} has a graph of interface {interface!r}; this version runs "
            f"{', '.join(_DECODERS)}, engine, native: install a newer doge-export"
        )
    if device != CPU:
        if window is not None:
            raise DogeExportError("the window of a graph on a GPU is built in: leave window or device out")
        session = open_graph_on_cuda(folder, name, device, threads=threads)
        check_interface(session, manifest, interface, folder / name)
        return OnDeviceDecoder(session, limits, device)

    def native(asked: bool) -> Decoder:
        return _native_decoder(_native_model(folder, manifest, name, threads, asked), manifest, name, window)

    decoder = _natively(native, folder, backend, providers)
    if decoder is not None:
        return decoder
    session = open_graph(folder, name, threads=threads, providers=providers)
    check_interface(session, manifest, interface, folder / name)
    opened = _DECODERS[interface](session, limits)
    return opened if window is None else _graph_with_window(opened, folder, window)


def with_window(session: Session, window: int) -> Decoder:
    """Return a decoder with a window below the trained one over the weights that a session has opened.

    Raises:
        DogeExportError: as for `load` with this window.
    """
    opened = session.decoder
    if isinstance(opened, NativeDecoder):
        return _native_decoder(opened.model, session.manifest, session.graph, window)
    if session.manifest.graphs[session.graph].interface == "engine":
        raise _engine_has_window(session.folder)
    return _graph_with_window(opened, session.folder, window)


def _graph_with_window(opened: Decoder, folder: Path, window: int) -> Decoder:
    if isinstance(opened, BoundedDecoder) and opened.takes_window:
        return opened.with_window(window)
    raise DogeExportError(
        f"the window of {folder}'s graph is built in: leave the window out, use the native decoder where it "
        "computes this model, or export again with --cache bounded"
    )


def _engine_has_window(folder: Path) -> DogeExportError:
    return DogeExportError(f"{folder} holds an engine, whose window is built in: leave the window out")


def smaller_window(manifest: Manifest, window: int) -> int | None:
    """Return a window below the trained one; None for the trained one itself.

    Raises:
        DogeExportError: the model has no window, or a smaller one.
    """
    a = manifest.architecture
    trained = int(a.get("keep_window_size") or 0)
    if trained == 0 or a.get("ratio_mask") is not None or a.get("score") in ("none", "threshold"):
        raise DogeExportError("this model keeps no number of keys of highest score: leave the window out")
    if not is_integer(window) or not 1 <= window <= trained:
        raise DogeExportError(
            f"the window is {window!r}, expected 1 to {trained}, the keep_window_size that the model was trained with"
        )
    return None if window == trained else int(window)


def _open_one_call(
    folder: Path,
    manifest: Manifest,
    name: str,
    backend: Backend | None,
    threads: int | None,
    providers: Sequence[Any] | None,
) -> OneCall:
    """Open what computes features or classes; arguments as in `load`."""

    def native(asked: bool) -> OneCall:
        if manifest.graphs[name].interface != "one-call":
            raise NotNative(f"the manifest says {manifest.task}, and {name} is a graph that writes text")
        model = _native_model(folder, manifest, name, threads, asked)
        if manifest.task != ClassificationSession.task:
            return NativeCall(model)
        return NativeCall(model, Classifier.of(folder / name, check_graph(manifest, manifest.graphs[name])))

    model = _natively(native, folder, backend, providers)
    if model is not None:
        return model
    graph = open_graph(folder, name, threads=threads, providers=providers)
    check_interface(graph, manifest, "one-call", folder / name)
    return GraphCall(graph)


def _natively(
    opened: Callable[[bool], Opened], folder: Path, backend: Backend | None, providers: Sequence[Any] | None
) -> Opened | None:
    """Open what runs a graph's native form; None where the graph itself is to run.

    Args:
        opened: opens it; its argument tells whether the user asked for it.
        folder: an exported folder.
        backend, providers: see `load`.

    Raises:
        DogeExportError: backend "native" is asked for, and the graph has no native form.
    """
    if backend == "graph" or (backend is None and not (providers is None and NATIVE_BY_DEFAULT)):
        return None
    asked = backend == "native"
    try:
        return opened(asked)
    except NotNative as why:
        if asked:
            raise DogeExportError(f"{folder} cannot be run by the native decoder: {why}") from why
    except RunFailed:
        raise
    except (DogeExportError, OSError):  # of a folder that onnxruntime will tell more about
        if asked:
            raise
    return None


def _native_model(folder: Path, manifest: Manifest, name: str, threads: int | None, asked: bool) -> NativeModel:
    if not asked and native_library().usable_instruction_sets[-1] == "plain":
        raise NotNative("it has no kernels for this processor")
    if not is_there(folder / name):
        raise DogeExportError(f"{folder} has no {name}; export it again")
    opened = open_native(folder, manifest, name, threads and min(threads, FEW))
    if opened.note is not None:
        warnings.warn(opened.note, stacklevel=6)
    return opened.model


def _native_decoder(model: NativeModel, manifest: Manifest, name: str, window: int | None) -> Decoder:
    graph = manifest.graphs[name]
    limits, cache = SequenceLimits.of(manifest), cache_kind(graph)
    if manifest.cache == "bounded" or (window is not None and can_drop_keys(model.config)):
        return BoundedNativeDecoder(model, limits, cache, window=window)
    return NativeDecoder(model, limits, cache, finds_best=graph.precision == "fp32", window=window)


def _native_folder_decoder(
    folder: Path, manifest: Manifest, name: str, threads: int | None, window: int | None, *, is_graph: bool
) -> Decoder:
    if is_graph:
        raise DogeExportError(f"{folder} has the native form of the weights alone; leave backend and providers out")
    try:
        model = open_weight_file(folder / f"{name}_data", manifest, threads and min(threads, FEW))
    except NotNative as why:
        raise DogeExportError(f"{folder} needs the native decoder: {why}") from why
    return _native_decoder(model, manifest, name, window)


def _checked_device(device: str | None, backend: str | None, providers: Any) -> Device:
    place = parsed_device(device)
    if place != CPU and (backend == "native" or providers is not None):
        raise DogeExportError(f"device {device} is onnxruntime's: leave backend native and execution providers out")
    return place


def _check_backend(backend: str | None, providers: Any) -> None:
    if backend is not None and backend not in get_args(Backend):
        raise DogeExportError(f"backend is {backend!r}, expected one of {', '.join(get_args(Backend))}")
    if backend == "native" and providers is not None:
        raise DogeExportError("execution providers are onnxruntime's: leave them out, or take backend graph")
