"""Names of what a run writes before it is whole, so that the next run finds what a killed one left."""

from __future__ import annotations

import os
import re

STAGED, REPLACED, COMPLETE = "tmp", "old", "new"
"""What a temporary folder holds: an unfinished output, the content it replaces, a finished output on its way."""

KINDS = f"{STAGED}|{REPLACED}|{COMPLETE}"
INSIDE = re.compile(rf"\.(\d+)\.doge-export-({KINDS})")
"""Name of a temporary folder inside an output that cannot be renamed; groups: process id, kind."""


def beside(name: str, kind: str, number: int | None = None) -> str:
    """Return the name of a temporary folder or file beside the output `name`; by default this process's."""
    return f".{name}.{os.getpid() if number is None else number}.doge-export-{kind}"


def inside(kind: str) -> str:
    """Return the name of this process's temporary folder inside an output."""
    return f".{os.getpid()}.doge-export-{kind}"


def pattern_beside(name: str) -> re.Pattern[str]:
    """Return a pattern of the names that `beside` gives in any process; groups: process id or number, kind."""
    return re.compile(rf"\.{re.escape(name)}\.(\d+)\.doge-export-({KINDS})")
