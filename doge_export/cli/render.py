"""Plain text and JSON for stdout."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from doge_export.package import Manifest, manifest_digest, validation_line


def echo_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON with its keys in the order given; on one line if `indent` is None."""
    click.echo(json.dumps(value, indent=indent, default=str))


def columns(rows: Iterable[Sequence[Any]], indent: int = 2) -> str:
    """Format rows as lines of left-aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join((" " * indent + line).rstrip() for line in lines)


def size(count: int) -> str:
    """Format a number of bytes for people: 512 B, 3.4 kB, 82.1 MB."""
    if count < 1000:
        return f"{count} B"
    for power, unit in ((1, "kB"), (2, "MB")):
        if count / 1000**power < 999.95:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def named_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the names and values of a mapping without its None; names of nested entries are joined with dots."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{inner}", text) for inner, text in named_values(value)]
        elif value is not None:
            lines.append((name, str(value)))
    return lines


def written_facts(folder: Path, manifest: Manifest, **others: Any) -> dict[str, Any]:
    """Describe a folder that a command wrote, for --json; `others` come before the manifest."""
    facts = {"folder": str(folder), "bytes": _bytes_in(manifest), "passed": manifest.passed}
    facts["sha256"] = manifest_digest(folder)
    return {**facts, **others, "manifest": manifest.to_dict()}


def written_lines(folder: Path, manifest: Manifest) -> list[str]:
    """Describe a folder that a command wrote: a line for its size, and one for the result of the validation.

    The first ends with the sha256 of the manifest, by which `doge-export verify --sha256` tells it from any other.
    """
    files = f"{size(_bytes_in(manifest))} in {len(manifest.files)} files, manifest sha256 {manifest_digest(folder)}"
    return [f"{folder}  {files}", validation_line(manifest)]


def trial_lines(folder: Path, manifest: Manifest) -> list[str]:
    """Return a line with a command to try the folder; none for a folder without tokenizer, which cannot take text."""
    from doge_export.runtime.task_session import COMMANDS

    if "tokenizer.json" not in manifest.files:
        return []
    # A text to be continued: a question outside a chat template may end the text at once.
    text = "Once upon a time" if manifest.task == "text-generation" else "Hey how are you doing?"
    return [f'try: doge-export {COMMANDS[manifest.task]} {shlex.quote(str(folder))} "{text}"']


def _bytes_in(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values())
