"""Measure several sessions of one folder in threads: right answers, answers a second, and memory.

`python sessions.py FOLDER` loads the folder in a fresh process, lets threads share one session, then gives each thread
a fork, and exits with 1 if an answer is wrong or the memory is more than twice the weights and the caches.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WAYS = ("one session", "forks", "loads")


def main() -> None:
    """Measure each way in a process of its own and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision")
    parser.add_argument("--sessions", type=int, default=8, help="sessions, and threads")
    parser.add_argument("--answers", type=int, default=50, help="answers of each thread")
    parser.add_argument("--new-tokens", type=int, default=20, help="tokens of each answer")
    parser.add_argument("--way", choices=WAYS, help="measure this process; the default starts a process for each way")
    asked = parser.parse_args()
    if asked.way is not None:
        print(json.dumps(measure(asked)))
        return
    results = {}
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        results[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(" ".join((f"{way}:", *(f"{name} {value}," for name, value in results[way].items()))).rstrip(","))
    forks = results["forks"]
    ratio = forks["MB"] / (forks["weights MB"] + forks["caches MB"])
    are_right = all(
        found["right"] == f"{asked.sessions * asked.answers} of {asked.sessions * asked.answers}"
        for found in results.values()
    )
    print(f"memory of {asked.sessions} forks: {ratio:.2f} times weights and caches, at most 2")
    sys.exit(0 if ratio <= 2 and are_right else 1)


def measure(asked: argparse.Namespace) -> dict[str, object]:
    """Answer in threads; return right answers, answers a second, and the growth of memory against what it holds."""
    import numpy as np
    import onnxruntime  # noqa: F401 (its own memory counts before)

    from doge_export.package.manifest import read_manifest
    from doge_export.runtime import load
    from doge_export.runtime.graph import graph_file

    before = resident()
    first = load(asked.folder, precision=asked.precision, threads=1)
    if asked.way == "one session":
        sessions = [first] * asked.sessions
    elif asked.way == "forks":
        sessions = [first, *(first.fork() for _ in range(asked.sessions - 1))]
    else:
        sessions = [
            first,
            *(load(asked.folder, precision=asked.precision, threads=1) for _ in range(asked.sessions - 1)),
        ]
    random = np.random.default_rng(0)
    sizes = random.integers(1, 24, asked.answers)
    prompts = [random.integers(0, first.decoder.vocab_size, size).tolist() for size in sizes]
    settings = {"max_new_tokens": asked.new_tokens, "eos_token_id": [], "do_sample": False}
    expected = [first.generate(prompt, **settings).token_ids for prompt in prompts]

    def answers(session: object) -> int:
        return sum(
            session.generate(prompt, **settings).token_ids == ids for prompt, ids in zip(prompts, expected, strict=True)
        )

    started = time.perf_counter()
    with ThreadPoolExecutor(asked.sessions) as pool:
        right = sum(pool.map(answers, sessions))
    seconds = time.perf_counter() - started
    for session in {id(session): session for session in sessions}.values():  # every page of every cache is in use
        fill(session)
    gc.collect()
    graph = asked.folder / graph_file(asked.folder, read_manifest(asked.folder), asked.precision)
    weights = sum(part.stat().st_size for part in graph.parent.glob(f"{graph.name}*"))
    caches = sum(array.nbytes for pair in first.decoder.cache_snapshot() for array in pair)
    caches *= len({id(session) for session in sessions})
    return {
        "right": f"{right} of {asked.sessions * asked.answers}",
        "answers a second": round(asked.sessions * asked.answers / seconds, 1),
        "MB": round((resident() - before) / 1e6, 1),
        "weights MB": round(weights / 1e6, 1),
        "caches MB": round(caches / 1e6, 1),
    }


def fill(session: object, size: int = 64) -> None:
    """Fill the cache of a session, in pieces over which attention takes little memory."""
    import numpy as np

    with session.exclusive():
        session.reset()
        for start in range(0, session.max_length, size):
            session.decoder.forward(np.zeros((1, min(size, session.max_length - start)), np.int64), None, 1)


def resident() -> int:
    """Return the resident memory of this process in bytes; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
