"""Give the commands damaged files and count what is not one line: `python tests/fuzz/run.py --seed 1 --minutes 10`.

Each case damages one file of a checkpoint or of an exported folder, as the seed and its number say, and runs a command
on it. Right is an answer, or one line with exit code 1 or 2. Wrong is a traceback, a crash, or more than 20 seconds.
`--only NUMBER` runs one case again, in the open.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutations import damaged_bytes, damaged_json, damaged_safetensors, damaged_template

LIMIT = 20.0
"""Seconds of a case."""
STARTING = 60.0
"""Seconds until a worker begins its first case."""
MEMORY = 8 * 2**30
"""Bytes of address space of a worker, so that a demand for terabytes does not take the machine."""

Damage = Callable[[bytes, random.Random], bytes]


def _graph(content: bytes, chance: random.Random) -> bytes:
    """Damage the nodes, which lie before the weights, or anything."""
    return damaged_bytes(content, chance, 0, chance.choice((2_000, 40_000, len(content))))


ASK = ("generate", "FOLDER", "Once upon a time", "--max-new-tokens", "3")
KINDS: dict[str, list[tuple[str, str, Damage, tuple[str, ...]]]] = {
    "config": [("checkpoint", "config.json", damaged_json, ("inspect", "FOLDER"))],
    "safetensors": [("checkpoint", "model.safetensors", damaged_safetensors, ("inspect", "FOLDER"))],
    "manifest": [
        ("exported", "doge_export.json", damaged_json, command)
        for command in (ASK, ("inspect", "FOLDER"), ("verify", "FOLDER"))
    ],
    "tokenizer": [
        ("exported", name, damaged_json, command)
        for name in ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
        for command in (ASK, (*ASK, "--chat"))
    ],
    "template": [("exported", "chat_template.jinja", damaged_template, (*ASK, "--chat"))],
    "onnx": [("exported", "onnx/model.onnx", _graph, command) for command in (ASK, ASK, ("inspect", "FOLDER"))],
}


def prepare(place: Path) -> None:
    """Write the checkpoint and the exported folder that every case damages a copy of."""
    from doge_export import console, export
    from doge_export.assets import bundled

    console.set_quiet(True)
    shutil.copytree(bundled("doge-nano"), place / "checkpoint")
    export(place / "checkpoint", place / "exported", validate=False)
    template = place / "exported" / "chat_template.jinja"
    if not template.exists():
        template.write_text(
            "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )


def case(place: Path, seed: int, number: int, kinds: list[str], target: Path) -> tuple[str, list[str]]:
    """Write the damaged folder of a case to `target`; return what it is, and the command line."""
    chance = random.Random(f"{seed}/{number}")
    kind = kinds[number % len(kinds)]
    subject, name, damage, command = chance.choice(KINDS[kind])
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place / subject, target, copy_function=os.link)
    file = target / name
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(damage(content, chance))
    return f"{kind} ({name}, {command[0]})", [str(target) if word == "FOLDER" else word for word in command]


def run_case(command: list[str]) -> str | None:
    """Run a command line in this process; return what is wrong with how it ended, None if nothing is."""
    from doge_export.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main.main(command, prog_name="doge-export")
    except SystemExit as end:
        lines = [line for line in err.getvalue().splitlines() if line]
        if end.code in (0, None):
            return None
        told = [line for line in lines if line.startswith("doge-export: error: ")]
        if end.code in (1, 2) and len(told) == 1 and lines[-1] == told[0]:
            return None
        return f"exit code {end.code!r} with {lines[-3:]}"
    except BaseException:
        return traceback.format_exc()
    return None


def work(place: Path, seed: int, number: int, kinds: list[str]) -> None:
    """Run cases from `number` on until this process is ended; a line on stdout begins and ends each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import doge_export.checkpoint
    import doge_export.runtime.inspection  # noqa: F401

    report = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        while True:
            described, command = case(place, seed, number, kinds, Path(folder, "case"))
            report.write(f"begin {number} {described}\n")
            wrong = run_case(command)
            report.write(f"end {number} {'ok' if wrong is None else 'wrong ' + repr(wrong)}\n")
            number += 1


def supervise(place: Path, seed: int, minutes: float, kinds: list[str], first: int = 0) -> dict[str, list[str]]:
    """Let workers run cases, one after another, for some minutes; return what was wrong, by kind of failure."""
    found: dict[str, list[str]] = {"traceback": [], "crash": [], "hang": []}
    counted: collections.Counter[str] = collections.Counter()
    number, end = first, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        number = _watch(place, seed, number, kinds, end, found, counted)
    print(
        f"seed {seed}: {number - first} cases, {dict(counted)}; { ({name: len(all) for name, all in found.items()}) }"
    )
    return found


def _watch(
    place: Path,
    seed: int,
    number: int,
    kinds: list[str],
    end: float,
    found: dict[str, list[str]],
    counted: collections.Counter[str],
) -> int:
    """Start a worker and watch it until it fails or the time is over; return the number of the next case."""
    log = place / "worker.log"
    with log.open("w") as stream:
        command = [sys.executable, __file__, "--work", str(place), "--seed", str(seed), "--first", str(number)]
        worker = subprocess.Popen([*command, "--kinds", *kinds], stdout=stream, stderr=subprocess.DEVNULL)
    seen, running, since = 0, "the start", time.monotonic()
    limit = STARTING
    while True:
        ended = worker.poll() is not None
        lines = log.read_text(errors="replace").split("\n")[:-1]
        for line in lines[seen:]:
            what, _, rest = line.partition(" ")
            if what == "begin":
                running, since, limit = rest, time.monotonic(), LIMIT
                counted[rest.split()[1]] += 1
            elif what == "end":
                number, _, result = rest.partition(" ")
                number = int(number) + 1
                if result.startswith("wrong"):
                    found["traceback"].append(f"{running}: {result}")
                    print(f"WRONG {running}\n…{result[-1500:]}", flush=True)
        seen = len(lines)
        if ended or time.monotonic() > min(end, since + limit):
            if ended or time.monotonic() < end:
                kind = "crash" if ended else "hang"
                found[kind].append(f"{running}: ended with {worker.returncode}" if ended else running)
                print(f"{kind.upper()} {found[kind][-1]}", flush=True)
                number = int(running.split()[0]) + 1 if running[0].isdigit() else number
            worker.kill()
            worker.wait()
            return number
        time.sleep(0.05)


def main() -> int:
    """Run what the arguments say; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run the case of this number alone, in this process")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        work(given.work, given.seed, given.first, given.kinds)
    with tempfile.TemporaryDirectory(prefix="doge-fuzz-") as place:
        prepare(Path(place))
        if given.only is not None:
            print(*case(Path(place), given.seed, given.only, given.kinds, Path(place, "case")))
            wrong = run_case(case(Path(place), given.seed, given.only, given.kinds, Path(place, "case"))[1])
            print(wrong or "ok")
            return int(wrong is not None)
        found = supervise(Path(place), given.seed, given.minutes, given.kinds, given.first)
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
