"""Measure published sizes against transformers, and against GGUF files of the same shape: `python measure.py 20M 60M`.

The program makes a checkpoint with random weights and its export if they are missing, then times every precision in one
process, in turns. It prints a table in Markdown, or with --json all measurements.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from make_checkpoint import make

from doge_export import export
from doge_export.benchmark.bench import bench
from doge_export.benchmark.machine import machine
from doge_export.package import read_manifest

PRECISIONS = ("fp32", "int8", "int4")
SHORT, LONG = 64, 1536
"""Contexts, in tokens, after which decoding is compared."""

GGUF = {
    "20M": {"fp32": 52.5, "int8": 13.9, "int4": 9.6},
    "60M": {"fp32": 218, "int8": 58, "int4": 35},
    "320M": {"fp32": 1342, "int8": 357, "int4": 198},
}
"""Size in MB of a Llama of the same shape as written by llama.cpp: F32, Q8_0, Q4_0."""

COLUMNS = (
    "size", "precision", "decode tok/s", "against transformers", f"at {LONG} against {SHORT}", "prefill 512",
    "file MB", "against GGUF", "peak MB", "1.3 file + 100 MB",
)  # fmt: skip


def measured(size: str, folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Measure a size, with its checkpoint and its export kept in `folder`; return `Benchmark.to_dict`."""
    checkpoint, out = folder / f"checkpoint-{size}", exported(size, folder)
    contexts = [length for length in (SHORT, LONG) if length + 32 <= read_manifest(out).max_length]
    result = bench(out, precision=PRECISIONS, compare=checkpoint, threads=threads, context=contexts, rounds=rounds)
    return result.to_dict()


def rows(size: str, result: dict[str, Any]) -> list[list[str]]:
    """Return a table row for each precision, and one for transformers."""
    table = []
    for precision in PRECISIONS:
        rates, ratios = result["rates"][precision], result["ratios"][precision]
        short, long = (rates.get(f"decode@{length}") for length in (SHORT, LONG))
        megabytes = result["subjects"][precision]["file_bytes"] / 1e6
        gguf = GGUF.get(size, {}).get(precision)
        table.append(
            [
                size,
                precision,
                f"{rates['decode'][1]:.0f}",
                f"{ratios['decode']:.1f}x",
                f"{long[1] / short[1]:.2f}x" if short and long else "",
                f"{ratios['prefill']:.1f}x",
                f"{megabytes:.1f}",
                f"{megabytes / gguf:.2f}x" if gguf else "",
                f"{result['process'][precision]['peak_bytes'] / 1e6:.0f}",
                f"{1.3 * megabytes + 100:.0f}",
            ]
        )
    baseline = result["rates"][result["baseline"]]
    return [*table, [size, "transformers", f"{baseline['decode'][1]:.1f}", *[""] * (len(COLUMNS) - 3)]]


def against_llama_cpp(size: str, folder: Path, threads: int, rounds: int) -> list[list[str]]:
    """Return a row for each precision and backend: its speed over llama.cpp's, of the same shape and bits."""
    from llama_cpp_model import LlamaCpp, write_gguf

    out = exported(size, folder)
    manifest = read_manifest(out)
    longest = manifest.max_length
    contexts = [LONG] if longest >= LONG + 32 else []
    table = []
    for precision in PRECISIONS:
        file = folder / f"llama-{size}-{precision}.gguf"
        if not file.exists():
            write_gguf(file, dict(manifest.architecture), precision, longest)
        result = bench(
            out,
            precision=[precision],
            backend=["native", "graph"],
            others=[LlamaCpp(file, threads, longest)],
            threads=threads,
            context=contexts,
            rounds=rounds,
        )
        for name in (LlamaCpp.name, *(name for name in result.subjects if name != LlamaCpp.name)):
            row = [size, precision, name, result.subjects[name].get("computed_by", "")]
            for measure in result.rates[name]:
                ratio = result.ratio(name, measure)
                shown = f"{result.rates[name][measure][1]:.0f}"
                row.append(shown if ratio is None else f"{shown} ({ratio:.2f}x)")
            table.append(row)
    return table


def exported(size: str, folder: Path) -> Path:
    """Return the export of a size with all precisions, made if it is missing."""
    checkpoint, out = folder / f"checkpoint-{size}", folder / f"out-{size}"
    if not checkpoint.exists():
        make(size, checkpoint)
    if not out.exists():
        # What random weights lose says nothing of trained ones, so no limit is set.
        export(checkpoint, out, validate=False, precisions=PRECISIONS[1:], max_kl=1e9)
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="+", help="a published size, as make_checkpoint.py knows it")
    parser.add_argument("--work", type=Path, default=Path("measured"), help="folder of checkpoints and exports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", choices=["llama.cpp"], help="time both backends in turns with this instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.against:
        columns = ("size", "precision", "subject", "by", "decode tok/s", "prefill 512", f"decode at {LONG}")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for size in arguments.size:
            for row in against_llama_cpp(size, arguments.work, arguments.threads, arguments.rounds):
                print(f"| {' | '.join(row)} |", flush=True)
        facts = {**machine(), "threads": arguments.threads, "load": [round(each, 1) for each in os.getloadavg()]}
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        return
    results = {}
    for size in arguments.size:
        results[size] = measured(size, arguments.work, arguments.threads, arguments.rounds)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size, result in results.items():
        for row in rows(size, result):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
