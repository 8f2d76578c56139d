"""Resident memory and speed against length, of exported folders that read on and on; several are drawn side by side."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import doge_export

Result = dict[str, Any]


def main() -> None:
    """Measure each folder in a process of its own, since a process gives no memory back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens to read, one at a time")
    parser.add_argument("--every", type=int, default=5_000, help="tokens between two lines")
    parser.add_argument("--seconds", type=float, default=3600, help="stop a folder after this time")
    parser.add_argument(
        "--settle",
        type=float,
        default=0,
        help="seconds to wait first: ten after its import onnxruntime looks up a name in a thread of its own, 0.9 MB",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=("native", "graph"))
    parser.add_argument("--window", type=int, help="keys that a token sees, fewer than the model was trained with")
    parser.add_argument(
        "--within", type=int, metavar="ROUNDS", help="compare speed within the window instead, in turns"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw memory and speed against length")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each folder")
    arguments = parser.parse_args()
    if arguments.within:
        return within_the_window(arguments)
    results = [measure(arguments)] if len(arguments.folders) == 1 else list(map(in_a_process, arguments.folders))
    if arguments.json:
        sys.stdout.writelines(json.dumps(result) + "\n" for result in results)
    if arguments.plot is not None:
        draw(results, arguments.plot)
    return None


def opened(arguments: argparse.Namespace, folder: Path) -> doge_export.Session:
    """Open a folder as the options say."""
    options = {"threads": arguments.threads, "backend": arguments.backend, "window": arguments.window}
    return doge_export.load(folder, **options)


def in_a_process(folder: Path) -> Result:
    """Measure a folder by this program, given that folder alone."""
    others = [each for each in sys.argv[1:] if not Path(each).is_dir()]
    if "--plot" in others:
        del others[(at := others.index("--plot")) : at + 2]
    command = [sys.executable, __file__, str(folder), *(each for each in others if each != "--json"), "--json"]
    result: Result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if "--json" not in others:
        print(folder, result["computed_by"])
        for row in result["rows"]:
            show(row)
    return result


def measure(arguments: argparse.Namespace) -> Result:
    """Read tokens one at a time and note memory and speed at each mark of the length."""
    session = opened(arguments, arguments.folders[0])
    decoder, window = session.decoder, session.manifest.architecture["keep_window_size"]
    last = min(arguments.tokens, session.max_length)
    marks = sorted({window, 2 * window, 4 * window, *range(arguments.every, last + 1, arguments.every), last})
    random = np.random.default_rng(0)
    rows = []
    seconds = np.zeros((1000, 2))  # wall and processor, of the last steps; nothing here grows with the length
    token, before = np.zeros((1, 1), np.int64), 0
    session.reset()
    time.sleep(arguments.settle)
    began = time.perf_counter()
    for mark in marks:
        if mark > last or time.perf_counter() - began > arguments.seconds:
            break
        for place in range(before, mark):
            token[0, 0] = random.integers(3, decoder.vocab_size)
            start = time.perf_counter(), time.process_time()
            decoder.predict(token)
            seconds[place % len(seconds)] = time.perf_counter() - start[0], time.process_time() - start[1]
        wall, processor = np.median(seconds[: min(mark, len(seconds))], axis=0)
        before = mark
        rows.append(
            {
                "tokens": mark,
                "resident_mb": round(resident_bytes() / 1e6, 2),
                "tokens_per_second": round(1 / float(wall), 1),
                "tokens_per_processor_second": round(1 / float(processor), 1),
            }
        )
        if not arguments.json:
            show(rows[-1])
    cache_bytes, start_of_copy = decoder.cache_bytes, time.perf_counter()
    decoder.mark()
    copy = 1000 * (time.perf_counter() - start_of_copy)
    ratio = against_near(decoder, 2 * window)
    if ratio is not None and not arguments.json:
        print(f"{ratio:.3f}x the speed behind {2 * window} tokens, by processor time in turns")
    if not arguments.json:
        print(f"{copy:.2f} ms to keep the state at the end of a turn")
    return {
        "folder": str(arguments.folders[0]),
        "cache": session.manifest.cache,
        "window": decoder.window or window,
        "computed_by": decoder.computes_by,
        "cache_bytes": cache_bytes,
        "turn_ms": round(copy, 3),
        "speed_against_twice_the_window": ratio,
        "rows": rows,
    }


def against_near(decoder: Any, near: int, steps: int = 400) -> float | None:
    """Decode by turns behind all that was read and behind `near` tokens; return the ratio of speeds, given room."""
    steps = min(steps, decoder.max_length - max(decoder.length, near))
    if steps < 2 or decoder.length < near:
        return None
    other = decoder.fork()
    ids = np.random.default_rng(1).integers(3, decoder.vocab_size, (1, near + steps))
    other.predict(ids[:, :near])
    spent = np.zeros((steps, 2))
    for step in range(steps):
        for place in (0, 1) if step % 2 else (1, 0):
            start = time.process_time()
            (other, decoder)[place].predict(ids[:, near + step : near + step + 1])
            spent[step, place] = time.process_time() - start
    other.close()
    close, far = np.median(spent, axis=0)
    return round(float(close / far), 3)


def within_the_window(arguments: argparse.Namespace) -> None:
    """Decode within the window by every folder in turns, and print processor time against that of the last one."""
    sessions = [opened(arguments, folder) for folder in arguments.folders]
    window = min(session.manifest.architecture["keep_window_size"] for session in sessions)
    steps = min(window - 1, 256)
    ids = np.random.default_rng(0).integers(3, sessions[0].decoder.vocab_size, (1, window))
    spent = np.zeros((arguments.within, len(sessions)))
    for turn in range(-1, arguments.within):
        for place in range(len(sessions))[:: -1 if turn % 2 else 1]:
            sessions[place].reset()
            decoder = sessions[place].decoder
            if window > steps + 1:
                decoder.predict(ids[:, : window - 1 - steps])
            start = time.process_time()
            for at in range(window - steps, window):
                decoder.predict(ids[:, at : at + 1])
            if turn >= 0:  # the first one is not counted
                spent[turn, place] = time.process_time() - start
    for folder, session, ratio in zip(
        arguments.folders, sessions, np.median(spent[:, -1:] / spent, axis=0), strict=True
    ):
        print(f"{folder}: {ratio:.3f}x the speed of {arguments.folders[-1]}, {session.decoder.computes_by}")


def show(row: Result) -> None:
    """Print a line."""
    line = "{tokens:8d} tokens  {resident_mb:8.2f} MB  {tokens_per_second:8.1f} tokens/s"
    print((line + "  {tokens_per_processor_second:8.1f} by processor time").format(**row), flush=True)


def draw(results: list[Result], file: Path) -> None:
    """Draw memory and speed against length."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "doge-export", "font.size": 9, "axes.grid": True}):
        figure = Figure(figsize=(11, 3.8))
        panels = {"resident memory, MB": "resident_mb", "tokens a second of a processor": "tokens_per_processor_second"}
        for axes, (title, name) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for result in results:
                points = [(row["tokens"], row[name]) for row in result["rows"]]
                label = f"{result['cache']}, {Path(result['folder']).name}: {result['computed_by']}"
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=label)
            axes.set_title(title, loc="left")
            axes.set_xlabel("tokens read")
            axes.set_ylim(bottom=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="lower left", ncols=2)
        figure.subplots_adjust(left=0.06, right=0.99, top=0.92, bottom=0.18 + 0.05 * len(results))
        figure.savefig(file, dpi=150)


def resident_bytes() -> int:
    """Return the memory of this process that is in use now; Linux tells it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
