"""Answers or embeds every row of a file on Ray, and goes on where it was after a worker, or all of it, was killed.

python bulk.py out prompts.jsonl answers --field text --max-new-tokens 64 --workers 4

Rows are worked on in parts, each of which is a file of the output folder that appears whole or not at all. Ray runs the
part of a dead worker again in another one; a second start of the command computes the parts that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def rows_of(file: Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Yield rows of a JSONL or Parquet file, those of the range.

    Raises:
        ValueError: a line is not JSON.
    """
    if file.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        batches = ParquetFile(file).iter_batches(batch_size=1024)
        rows: Iterator[Row] = (row for batch in batches for row in batch.to_pylist())
        yield from itertools.islice(rows, start, stop)
        return
    with file.open(encoding="utf-8") as lines:
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for number, line in itertools.islice(numbered, start, stop):
            try:
                row = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON ({error.msg}, column {error.colno})") from error
            yield row


def part_file(out: Path, part: int) -> Path:
    """Return the file of a part."""
    return out / f"part-{part:06d}.jsonl"


def missing_parts(out: Path, rows: int, size: int) -> list[int]:
    """Return the parts that are still to be computed."""
    return [part for part in range(-(-rows // size)) if not part_file(out, part).exists()]


def write_part(out: Path, part: int, rows: list[Row]) -> None:
    """Write a part beside its place, and move it there; two workers may do so at once."""
    staged = out / f".part-{part:06d}.{uuid.uuid4().hex}"  # a process id may be there on another machine, too
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)  # times, decimals, bytes: as text
    staged.write_text(
        "".join(lines), encoding="utf-8", errors="backslashreplace"
    )  # half a surrogate pair, as JSON has it
    staged.replace(part_file(out, part))


def worked(session: Any, rows: list[Row], field: str, settings: dict[str, Any]) -> list[Row]:
    """Return the rows with their answers or vectors; a row that has none tells why instead."""
    from doge_export import DogeExportError

    def results(texts: list[str]) -> list[Row]:
        if session.task == "feature-extraction":
            return [{"embedding": vector.tolist()} for vector in session.embed(texts)]
        return [
            {"answer": answer.text, "finish_reason": answer.finish_reason}
            for answer in session.generate(texts, **settings)
        ]

    def text_of(row: Row) -> Any:
        if not isinstance(row, dict):
            raise TypeError(f"a row is an object with fields, and this is a {type(row).__name__}")
        return row[field]

    try:
        found = results([text_of(row) for row in rows])
    except (DogeExportError, KeyError, TypeError):  # of one of them
        found = []
        for row in rows:
            try:
                found += results([text_of(row)])
            except (DogeExportError, KeyError, TypeError) as error:
                found.append({"error": f"{type(error).__name__}: {error}"})
    return [(row if isinstance(row, dict) else {"row": row}) | result for row, result in zip(rows, found, strict=True)]


class Worker:
    """A process with the model, which works on parts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from doge_export import load

        self._a = arguments
        self._session = load(arguments.folder, precision=arguments.precision, threads=arguments.threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the parts of a batch."""
        a, settings = self._a, {"max_new_tokens": self._a.max_new_tokens, "temperature": self._a.temperature}
        for part in map(int, batch["part"]):
            rows = list(rows_of(a.file, part * a.part_rows, (part + 1) * a.part_rows))
            chunks = (rows[at : at + a.batch_size] for at in range(0, len(rows), a.batch_size))
            write_part(
                a.out, part, [row for chunk in chunks for row in worked(self._session, chunk, a.field, settings)]
            )
        return batch


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder, for text-generation or feature-extraction")
    parser.add_argument("file", type=Path, help="a file of rows: .jsonl or .parquet")
    parser.add_argument(
        "out", type=Path, help="folder of the parts; one that several machines write lies where all see it"
    )
    parser.add_argument("--field", default="text", help="field of a row that holds its text")
    parser.add_argument("--precision")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--part-rows", type=int, default=256, help="rows of a part; the same at each start")
    parser.add_argument("--batch-size", type=int, default=16, help="rows that are read together")
    parser.add_argument("--address", help="a Ray cluster; by default one of this machine is begun")
    arguments = parser.parse_args()
    for name in ("folder", "file", "out"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = sum(1 for _ in rows_of(arguments.file))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {arguments.file} cannot be read: {' '.join(str(error).split())}")
    parts = missing_parts(arguments.out, rows, arguments.part_rows)
    print(f"{rows} rows, {len(parts)} parts to compute", flush=True)
    if not parts:
        return

    import ray

    ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False)
    data = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    workers = ray.data.ActorPoolStrategy(min_size=1, max_size=arguments.workers)
    done = data.map_batches(
        Worker, fn_constructor_args=(arguments,), batch_size=1, num_cpus=arguments.threads, compute=workers
    ).count()
    ray.shutdown()
    left = missing_parts(arguments.out, rows, arguments.part_rows)
    print(f"{done} parts computed, {len(left)} missing", flush=True)
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
