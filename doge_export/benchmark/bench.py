"""Timing of several models in rounds, in each of which every model takes its turn.

Other work on the machine slows all models alike if they alternate in one process, so ratios are reliable where absolute
times are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.benchmark.machine import machine
from doge_export.benchmark.probe import probe
from doge_export.benchmark.timed_model import TimedModel, TimedSession
from doge_export.console import progress
from doge_export.errors import DogeExportError
from doge_export.installing import need
from doge_export.runtime.device import CPU, parsed_device
from doge_export.runtime.graph import graph_file
from doge_export.runtime.loading import load_as
from doge_export.runtime.native.support import Backend
from doge_export.runtime.session import Session

Timings = dict[str, dict[str, list[float]]]
"""Subject -> measure -> [10th percentile, median, 90th percentile] over the rounds."""

PAUSE = 0.25
"""Seconds after which the threads of an onnxruntime session have stopped to spin."""

STEPS = 32
"""Number of tokens decoded after a context; few, so that the length of the context changes little."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The measurements of every subject: each is an exported graph, one may be a checkpoint in PyTorch.

    Attributes:
        subjects: description of each subject by name.
        rates: tokens per second: "decode" (an answer after a short prompt), "prefill" (a long prompt), "decode@N"
            (after N tokens of context).
        seconds: time to the first token: "first_token" (after the short prompt), "first_token@N".
        process: time and memory that a fresh process needs, for exported graphs; see `probe`.
        baseline: the subject that ratios refer to: the checkpoint, else the first of several graphs; None for a single
            graph.
        settings: lengths, rounds and threads.
        machine: the machine that was measured on.
    """

    subjects: dict[str, dict[str, Any]]
    rates: Timings
    seconds: Timings
    process: dict[str, dict[str, Any]]
    baseline: str | None
    settings: dict[str, Any]
    machine: dict[str, Any]

    def ratio(self, subject: str, measure: str) -> float | None:
        """Return how many times as fast as the baseline a subject is, by medians; None without another baseline."""
        if self.baseline in (None, subject):
            return None
        if measure in self.rates[subject]:
            return self.rates[subject][measure][1] / self.rates[self.baseline][measure][1]
        return self.seconds[self.baseline][measure][1] / self.seconds[subject][measure][1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        measures = [*self.rates[next(iter(self.rates))], *self.seconds[next(iter(self.seconds))]]
        ratios = {
            subject: {measure: self.ratio(subject, measure) for measure in measures}
            for subject in self.subjects
            if self.baseline not in (None, subject)
        }
        return {**dataclasses.asdict(self), "ratios": ratios}


def bench(
    folders: str | Path | Sequence[str | Path],
    *,
    precision: Sequence[str] = (),
    compare: str | Path | None = None,
    threads: int | None = None,
    prompt_length: int = 16,
    new_tokens: int = 200,
    prefill_length: int = 512,
    context: Sequence[int] = (),
    rounds: int = 5,
    backend: Sequence[Backend] = (),
    window: Sequence[int] = (),
    device: str | None = None,
    others: Sequence[TimedModel] = (),
    verify: bool = False,
    allow_host_code: bool = False,
) -> Benchmark:
    """Time exported folders.

    Args:
        folders: one folder or several, as written by `doge-export onnx`.
        precision: precisions of the graphs to time in each folder; by default the graph that `load` opens.
        compare: checkpoint to time in PyTorch, in the same process and the same rounds: in transformers, or in
            doge-export's own module for a generation that transformers does not have.
        threads: number of CPU threads for every subject; by default the libraries' own choice.
        prompt_length: number of prompt tokens of "decode".
        new_tokens: number of tokens to generate for "decode"; no token ends the answer early. It is cut to what the
            shortest export holds.
        prefill_length: number of prompt tokens of "prefill", cut likewise.
        context: numbers of tokens after which to measure the first token and decoding.
        rounds: number of rounds, after one that is not counted.
        backend: what computes each graph, see `load`; several are timed side by side. By default what `load` takes.
        window: windows smaller than the trained one to time beside it, see `load`.
        device: where onnxruntime runs the graphs, see `load`.
        others: models of other libraries that take their turns too; the first is what ratios refer to.
        verify, allow_host_code: see `load`.

    Raises:
        DogeExportError: a prompt or a context leaves no room in the shortest export, or a folder cannot be read.
    """
    if compare is not None:
        need("export", "torch", "safetensors")
    opening = {"threads": threads, "device": device, "verify": verify, "allow_host_code": allow_host_code}
    if parsed_device(device) != CPU and not precision:
        precision = ["fp16"]
    given = [folders] if isinstance(folders, (str, Path)) else folders
    sessions = _open(
        list(dict.fromkeys(map(Path, given))),
        list(dict.fromkeys(precision)),
        list(dict.fromkeys(backend)),
        list(dict.fromkeys(window)),
        opening,
    )
    longest = min(session.max_length for _, session, _, _ in sessions)
    contexts = sorted(set(context))
    for length in (prompt_length, *contexts):
        if length >= longest:
            raise DogeExportError(f"{length} tokens leave no room for another: this export holds {longest}")
    new_tokens = min(new_tokens, longest - prompt_length)
    prefill_length = min(prefill_length, longest)
    settings: dict[str, Any] = {
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "prefill_length": prefill_length,
        "contexts": contexts,
        "rounds": rounds,
        "threads": threads,
    }
    process = {
        name: probe(session.folder, threads, new_tokens, asked, by, session.decoder.window, device, allow_host_code)
        for name, session, asked, by in sessions
    }
    described: dict[str, dict[str, Any]] = {name: _described(session, asked) for name, session, asked, _ in sessions}
    timed: list[TimedModel] = [TimedSession(name, session) for name, session, _, _ in sessions]
    baseline = timed[0].name if len(timed) > 1 else None
    if others:
        baseline = others[0].name
        described |= {other.name: {"description": type(other).__name__} for other in others}
        timed += others
    as_asked: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if compare is not None:
        from doge_export.benchmark.reference import load_reference, torch_threads
        from doge_export.checkpoint import open_checkpoint

        manifest = sessions[0][1].manifest
        checkpoint = open_checkpoint(compare, assumed=manifest.assumed, **manifest.source.adapter_options)
        reference = load_reference(checkpoint, manifest.cdmoe_routing)
        as_asked = torch_threads(threads)
        settings["compared_with"] = reference.description
        described[reference.name] = {"checkpoint": str(compare), "description": reference.description}
        baseline = reference.name
        timed.append(reference)
    vocab_size = min(session.decoder.vocab_size for _, session, _, _ in sessions)
    ids = np.random.default_rng(0).integers(vocab_size, size=(1, longest))
    measures = _measures(ids, prompt_length, new_tokens, prefill_length, contexts)
    with as_asked:
        rates, seconds = _interleaved(timed, measures, rounds)
    return Benchmark(described, rates, seconds, process, baseline, settings, machine())


LONGEST_PLOTTED = 2**14
"""Tokens up to which a plot goes by default, of folders without a limit."""


def contexts_to_plot(folders: Sequence[str | Path]) -> list[int]:
    """Return contexts for a plot: 64, 128, 256 and so on, as far as all folders hold them."""
    from doge_export.package.manifest import read_manifest

    longest = min(LONGEST_PLOTTED, *(read_manifest(folder).max_length for folder in folders))
    return [length for length in (64 << doubling for doubling in range(32)) if length + STEPS <= longest] or [
        longest // 2
    ]


Subject = tuple[str, Session, str | None, str | None]
"""Name, session, and the precision and backend that were requested."""


def _open(
    folders: list[Path], precisions: list[str], backends: list[Backend], windows: list[int], opening: dict[str, Any]
) -> list[Subject]:
    """Open every graph to time, by every backend."""
    opened: list[Subject] = []
    precisions_or_none: list[str | None] = [*precisions] or [None]
    backends_or_none: list[Backend | None] = [*backends] or [None]
    for folder, precision, by, window in itertools.product(
        folders, precisions_or_none, backends_or_none, [None, *windows]
    ):
        session = load_as(Session, folder, purpose="bench", precision=precision, backend=by, window=window, **opening)
        named = (
            str(folder) if len(folders) > 1 else None,
            precision,
            by if len(backends) > 1 else None,
            f"window {window or session.manifest.architecture['keep_window_size']}" if windows else None,
        )
        opened.append((" ".join(filter(None, named)) or "doge-export", session, precision, by))
    return opened


def _described(session: Session, precision: str | None) -> dict[str, Any]:
    """Describe a session: its folder, the precision of its graph, and the graph's bytes with its external data."""
    manifest = session.manifest
    graph = graph_file(session.folder, manifest, precision)
    parts = (file.bytes for name, file in manifest.files.items() if name in (graph, f"{graph}_data"))
    return {
        "folder": str(session.folder),
        "precision": manifest.graphs[graph].precision,
        "computed_by": session.decoder.computes_by,
        "file_bytes": sum(parts),
    }


Measure = Callable[[TimedModel], tuple[dict[str, float], dict[str, float]]]
"""A function that runs a subject once and returns rates and seconds, each by name of the measure."""


def _measures(
    ids: np.ndarray, prompt_length: int, new_tokens: int, prefill_length: int, contexts: Sequence[int]
) -> list[Measure]:
    def decode(subject: TimedModel) -> tuple[dict[str, float], dict[str, float]]:
        prompt = ids[:, :prompt_length]
        first = subject.read(prompt)
        return {"decode": new_tokens / subject.generate(prompt, new_tokens)}, {"first_token": first}

    def prefill(subject: TimedModel) -> tuple[dict[str, float], dict[str, float]]:
        return {"prefill": prefill_length / subject.read(ids[:, :prefill_length])}, {}

    def after(context: int) -> Measure:
        steps = min(STEPS, ids.shape[1] - context)

        def measure(subject: TimedModel) -> tuple[dict[str, float], dict[str, float]]:
            first = subject.read(ids[:, :context])
            return {f"decode@{context}": steps / subject.step(steps)}, {f"first_token@{context}": first}

        return measure

    return [decode, prefill, *map(after, contexts)]


def _interleaved(subjects: Sequence[TimedModel], measures: Sequence[Measure], rounds: int) -> tuple[Timings, Timings]:
    """Run every measure of every subject in every round, the subjects of a measure in immediate succession.

    Behind one whose threads still spin comes a pause, or the next would share its processors with them: of two cores,
    what ran straight behind an onnxruntime session lost half its speed.
    """
    seen: tuple[dict[tuple[str, str], list[float]], ...] = (defaultdict(list), defaultdict(list))
    with progress("timing", (rounds + 1) * len(measures) * len(subjects)) as advance:
        for turn in range(rounds + 1):
            for measure in measures:
                for subject in subjects if turn % 2 else subjects[::-1]:
                    for kind, found in zip(seen, measure(subject), strict=True):
                        for name, value in found.items() if turn else ():
                            kind[subject.name, name].append(value)
                    advance()
                    if subject.spins and len(subjects) > 1:
                        time.sleep(PAUSE)
    rates, seconds = (_percentiles(kind, subjects) for kind in seen)
    return rates, seconds


def _percentiles(seen: dict[tuple[str, str], list[float]], subjects: Sequence[TimedModel]) -> Timings:
    return {
        subject.name: {
            measure: np.percentile(values, (10, 50, 90)).tolist()
            for (name, measure), values in seen.items()
            if name == subject.name
        }
        for subject in subjects
    }
