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
from doge_export.runtime.loading import load_as
from doge_export.runtime.session import Session


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Tokens a second by subject and measure, [lowest, median, highest] over the rounds, and what one process needs."""

    folder: str
    rates: dict[str, dict[str, list[float]]]
    process: dict[str, Any]
    settings: dict[str, Any]

    def ratio(self, measure: str) -> float | None:
        """Median against that of what it is compared with; None without a comparison."""
        other = next((rates for subject, rates in self.rates.items() if subject != "doge-export"), None)
        return None if other is None else self.rates["doge-export"][measure][1] / other[measure][1]

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
        compare: the local checkpoint to run in PyTorch, in the same process and the same rounds: in transformers, or
            if it is of a generation that transformers does not have, in doge-export's own module.
        threads: CPU threads of both.
        prompt_length: of the generation whose tokens a second are "decode".
        new_tokens: its length; eos does not end it.
        prefill_length: tokens of the prompt whose reading is "prefill".
        rounds: of which the median is taken, after one that is not counted.
    """
    folder = Path(folder)
    session = load_as(Session, folder, purpose="bench", threads=threads)
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
        from doge_export.benchmark.reference import load_reference
        from doge_export.checkpoint import open_checkpoint
        from doge_export.checkpoint.generation import Assumptions

        assumed = Assumptions(**session.manifest.get("assumptions", {}))
        reference = load_reference(
            open_checkpoint(compare, assumed=assumed), session.manifest["cdmoe_routing"], threads
        )
        settings["compared_with"] = reference.description
        subjects[reference.name] = {
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
