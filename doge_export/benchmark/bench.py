"""How fast a folder answers: medians of rounds in which everything compared takes its turn.

Other work on the machine slows all of them alike when they alternate in one process, so ratios hold where absolute
times do not.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.benchmark.probe import probe
from doge_export.console import progress
from doge_export.errors import DogeExportError
from doge_export.runtime.session import Session, load


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Tokens a second by subject and measure, [lowest, median, highest] over the rounds, and what one process needs."""

    folder: str
    rates: dict[str, dict[str, list[float]]]
    process: dict[str, Any]
    settings: dict[str, Any]

    def ratio(self, measure: str) -> float | None:
        """Median against transformers' median; None without a comparison."""
        if "transformers" not in self.rates:
            return None
        return self.rates["doge-export"][measure][1] / self.rates["transformers"][measure][1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ratios = {measure: self.ratio(measure) for measure in self.rates["doge-export"]}
        return {**dataclasses.asdict(self), "ratios": ratios}


def bench(
    folder: str | Path,
    *,
    compare: str | Path | None = None,
    threads: int | None = None,
    prompt_length: int = 16,
    new_tokens: int = 200,
    prefill_length: int = 512,
    rounds: int = 5,
) -> Benchmark:
    """Time an exported folder.

    Args:
        folder: as `doge-export onnx` wrote it.
        compare: the local checkpoint to run in transformers, in the same process and the same rounds.
        threads: CPU threads of both.
        prompt_length: of the generation whose tokens a second are "decode".
        new_tokens: its length; eos does not end it.
        prefill_length: tokens of the prompt whose reading is "prefill".
        rounds: of which the median is taken, after one that is not counted.
    """
    folder = Path(folder)
    session = load(folder, threads=threads)
    prefill_length = min(prefill_length, session.max_length)
    new_tokens = min(new_tokens, session.max_length - prompt_length)
    if new_tokens < 1:
        raise DogeExportError(
            f"a prompt of {prompt_length} tokens leaves no room: this export holds {session.max_length}"
        )
    process = probe(folder, threads, new_tokens)
    random = np.random.default_rng(0)
    prompt = random.integers(session.decoder.vocab_size, size=(1, prompt_length))
    long_prompt = random.integers(session.decoder.vocab_size, size=(1, prefill_length))
    subjects: dict[str, dict[str, Callable[[], float]]] = {
        "doge-export": {
            "decode": lambda: _decode(session, prompt, new_tokens),
            "prefill": lambda: _prefill(session, long_prompt),
        }
    }
    settings: dict[str, Any] = {
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "prefill_length": prefill_length,
        "rounds": rounds,
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "onnxruntime": _version("onnxruntime"),
    }
    if compare is not None:
        from doge_export.benchmark.reference import Reference
        from doge_export.checkpoint import open_checkpoint

        reference = Reference(open_checkpoint(compare).source.folder, threads)
        settings["compared_with"] = reference.name
        subjects["transformers"] = {
            "decode": lambda: reference.decode(prompt, new_tokens),
            "prefill": lambda: reference.prefill(long_prompt),
        }
    return Benchmark(str(folder), _interleaved(subjects, rounds), process, settings)


def _interleaved(subjects: dict[str, dict[str, Callable[[], float]]], rounds: int) -> dict[str, dict[str, list[float]]]:
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    with progress("timing", (rounds + 1) * sum(map(len, subjects.values()))) as advance:
        for turn in range(rounds + 1):
            for subject, measures in subjects.items():
                for measure, run in measures.items():
                    rate = run()
                    if turn:
                        seen[subject, measure].append(rate)
                    advance()
    return {
        subject: {
            measure: [float(f(seen[subject, measure])) for f in (np.min, np.median, np.max)] for measure in measures
        }
        for subject, measures in subjects.items()
    }


def _decode(session: Session, prompt: np.ndarray, new_tokens: int) -> float:
    """Like `Session.generate`, greedy, without an end: the tokens go through the decoder and argmax one by one."""
    decoder = session.decoder
    start = time.perf_counter()
    decoder.reset()
    logits = decoder.forward(prompt, None, 1)
    for _ in range(new_tokens - 1):
        logits = decoder.forward(logits[:, -1].argmax(axis=-1)[:, None], None, 1)
    logits[:, -1].argmax(axis=-1)
    return new_tokens / (time.perf_counter() - start)


def _prefill(session: Session, prompt: np.ndarray) -> float:
    session.decoder.reset()
    start = time.perf_counter()
    session.decoder.forward(prompt, None, 1)
    return prompt.shape[1] / (time.perf_counter() - start)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
