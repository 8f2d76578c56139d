"""Plain text and JSON for stdout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def echo_json(value: Any, indent: int | None = 2) -> None:
    """One JSON object, keys in the order given; in one line without an indent."""
    click.echo(json.dumps(value, indent=indent, default=str))


def columns(rows: Iterable[Sequence[Any]], indent: int = 2) -> str:
    """Lines of left-aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join((" " * indent + line).rstrip() for line in lines)


def size(count: int) -> str:
    """Bytes for people: 512 B, 3.4 kB, 82.1 MB."""
    if count < 1000:
        return f"{count} B"
    for power, unit in ((1, "kB"), (2, "MB")):
        if count / 1000**power < 999.95:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def named_values(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every entry, nested ones by a dot; those without a value are left out."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{inner}", text) for inner, text in named_values(value)]
        elif value is not None:
            lines.append((name, str(value)))
    return lines
