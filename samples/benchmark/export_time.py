"""How long an export takes and how much memory, each in a fresh process: `python export_time.py doge-nano 20M 320M`.

Makes a checkpoint with random weights where it is not there yet; doge-nano is in the package. Nothing is validated or
quantised. Seconds are those of the call, with every import it makes; what importing torch takes is told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_checkpoint import make

BUNDLED = "doge-nano"
PROGRAM = """
import json, sys, time
start = time.monotonic()
import torch
ready = time.monotonic()
from doge_export import export
from doge_export.memory import peak_resident_bytes
export(sys.argv[1], sys.argv[2], validate=False)
print(json.dumps([ready - start, time.monotonic() - ready, time.process_time(), peak_resident_bytes()]))
"""
COLUMNS = ("size", "seconds", "seconds of CPU, all", "import torch", "peak MB")


def exported(model: str | Path) -> list[float]:
    """Seconds of importing torch, of the export, of the CPU for both, and the peak bytes of one fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, str(model), str(Path(folder) / "out")]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="+", help=f"{BUNDLED}, or a published size as make_checkpoint.py knows it")
    parser.add_argument("--work", type=Path, default=Path("measured"), help="folder of checkpoints")
    parser.add_argument("--rounds", type=int, default=3, help="of which the middle one is printed")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size in arguments.size:
        model = size if size == BUNDLED else arguments.work / f"checkpoint-{size}"
        if isinstance(model, Path) and not model.exists():
            make(size, model)
        rounds = [exported(model) for _ in range(arguments.rounds)]
        torch, seconds, cpu, peak = (statistics.median(parts) for parts in zip(*rounds, strict=True))
        print(f"| {size} | {seconds:.1f} | {cpu:.1f} | {torch:.1f} | {peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
