"""Resident memory and speed against length, of an exported folder that reads on and on."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import doge_export


def main() -> None:
    """Read tokens one at a time and print a line for each mark of the length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens to read, one at a time")
    parser.add_argument("--every", type=int, default=5_000, help="tokens between two lines")
    parser.add_argument("--seconds", type=float, default=3600, help="stop after this time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()

    session = doge_export.load(arguments.folder, threads=arguments.threads)
    decoder, window = session.decoder, session.manifest.architecture["keep_window_size"]
    last = min(arguments.tokens, session.max_length)
    marks = sorted({window, 2 * window, 4 * window, *range(arguments.every, last + 1, arguments.every), last})
    random = np.random.default_rng(0)
    rows, began = [], time.perf_counter()
    seconds = np.zeros(1000)  # of the last steps; nothing here grows with the length
    token, before = np.zeros((1, 1), np.int64), 0
    session.reset()
    for mark in marks:
        if mark > last or time.perf_counter() - began > arguments.seconds:
            break
        for place in range(before, mark):
            token[0, 0] = random.integers(3, decoder.vocab_size)
            start = time.perf_counter()
            decoder.predict(token)
            seconds[place % len(seconds)] = time.perf_counter() - start
        step = seconds[: min(mark, len(seconds))]
        before = mark
        row = {
            "tokens": mark,
            "resident_mb": round(resident_bytes() / 1e6, 2),
            "tokens_per_second": round(1 / float(np.median(step)), 1),
        }
        rows.append(row)
        if not arguments.json:
            print(
                "{tokens:8d} tokens  {resident_mb:8.2f} MB  {tokens_per_second:8.1f} tokens/s".format(**row), flush=True
            )
    if arguments.json:
        cache = session.manifest.cache
        print(json.dumps({"folder": str(arguments.folder), "cache": cache, "window": window, "rows": rows}))


def resident_bytes() -> int:
    """Return the memory of this process that is in use now; Linux tells it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
