"""Compares `doge-export serve` with llama.cpp's servers on a Llama of the same shape and bits, under the same clients.

python compare.py out-20M --precision int8 --llama-server build/bin/llama-server --llama-python venv/bin/python

All servers run at once, and clients ask one after the other, in turns, so that what else the machine does strikes all
of them alike. `--llama-python` is a Python with llama-cpp-python[server] and gguf; it writes the GGUF file, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load import PROMPT, Load, report

WRITER = Path(__file__).parents[1] / "benchmark" / "llama_cpp_model.py"
OURS = "doge-export"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def commands(arguments: argparse.Namespace, gguf: Path) -> dict[str, list[str]]:
    """Return the command of each server by name, without its port."""
    threads, lanes = arguments.threads, max(arguments.clients)
    ours = [sys.executable, "-m", "doge_export", "serve", str(arguments.folder), "--parallel", str(lanes)]
    found = {OURS: [*ours, "--precision", arguments.precision]}
    length = json.loads((arguments.folder / "doge_export.json").read_text(encoding="utf-8"))["max_length"]
    if arguments.llama_server:
        # Its context is shared by all lanes.
        sizes = ["--ctx-size", str(length * lanes), "--parallel", str(lanes), "--threads", str(threads)]
        found["llama-server"] = [arguments.llama_server, "--model", str(gguf), *sizes]
    if not arguments.without_llama_cpp_python:
        # By default it ends the answer that is written when another request comes.
        options = ["--model", str(gguf), "--n_ctx", str(length), "--n_threads", str(threads)]
        options += ["--interrupt_requests", "False"]
        found["llama-cpp-python"] = [arguments.llama_python, "-m", "llama_cpp.server", *options]
    return found


@contextlib.contextmanager
def running(command: list[str], log: Path, arguments: argparse.Namespace) -> Iterator[Load]:
    """Run a server in the body, and give its clients once it answers."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError, ValueError):
                load = Load(argparse.Namespace(**vars(arguments), url=f"http://127.0.0.1:{port}", api_key=None))
                if not any(answer.error for answer in asyncio.run(load.run(max(arguments.clients), 16))[0]):
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield load
    finally:
        process.kill()
        process.wait()


def compare(loads: dict[str, Load], clients: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the numbers of each server, medians of the rounds, with the ratio of our tokens a second to its own."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in loads}
    for number in range(arguments.rounds):
        for name in sorted(loads, reverse=number % 2 == 1):
            answers, seconds = asyncio.run(loads[name].run(clients, arguments.requests))
            shortest = min((answer.tokens for answer in answers if not answer.error), default=0)
            rounds[name].append({**report(answers, seconds, clients), "shortest": shortest})
    ours, found = rounds[OURS], []
    for name, each in rounds.items():
        numbers = {key: round(statistics.median(run[key] for run in each), 1) for key in each[0]}
        numbers["errors"] = sum(run["errors"] for run in each)
        if name != OURS:
            speeds = [(a["tokens_per_second"], b["tokens_per_second"] or 1e-9) for a, b in zip(ours, each, strict=True)]
            ratios = sorted(a / b for a, b in speeds)
            numbers["ours_over_it"] = [round(ratio, 2) for ratio in (ratios[0], statistics.median(ratios), ratios[-1])]
        found.append({"server": name, **numbers})
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder with a tokenizer")
    parser.add_argument("--precision", choices=["fp32", "int8", "int4"], default="int8")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's own server")
    parser.add_argument("--llama-python", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--without-llama-cpp-python", action="store_true", help="leave its server out")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="threads of llama.cpp; ours has as many as suit it",
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=40, help="requests of each turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt", default=PROMPT, help="{} is the number of the request; [%(default)s]")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        gguf = Path(scratch) / "llama.gguf"
        write = [arguments.llama_python, str(WRITER), str(arguments.folder), str(gguf)]
        subprocess.run([*write, "--precision", arguments.precision], check=True)
        loads = {
            name: stack.enter_context(running(command, Path(scratch) / f"{name}.log", arguments))
            for name, command in commands(arguments, gguf).items()
        }
        for clients in arguments.clients:
            for numbers in compare(loads, clients, arguments):
                print(json.dumps(numbers), flush=True)
                failed += numbers["errors"]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
