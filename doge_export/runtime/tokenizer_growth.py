"""Bound on how much longer a tokenizer.json may make a text, before its library is handed one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from doge_export.errors import DogeExportError

MOST = 64
"""Characters that a step may make of one. "▁", the longest replacement of any published tokenizer, is one."""

MOST_STEPS = 64
"""Steps of a normalizer, pre-tokenizer, post-processor or decoder; published ones have up to some ten."""

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")
_TEXTS = ("content", "prepend", "replacement", "prefix", "suffix", "str_rep")


def check_growth(parts: Any) -> None:
    """Check that no chain of steps of a tokenizer makes texts longer and longer.

    Twenty replacements of "a" by "aaaa" would make 10**12 characters of one, in a library that nothing can interrupt.

    Args:
        parts: content of tokenizer.json.

    Raises:
        DogeExportError: it has too many steps, or they make too much of one character.
        ValueError: it is no tokenizer at all.
    """
    if not isinstance(parts, dict):
        raise ValueError("it holds no object")
    for part in _PARTS:
        growth = 1
        for number, step in enumerate(_steps(parts.get(part)), 1):
            growth *= max([1, *(len(step[name]) for name in _TEXTS if isinstance(step.get(name), str))])
            if number > MOST_STEPS or growth > MOST:
                raise DogeExportError(
                    f"tokenizer.json: the {part} has {number} steps or more, which make {growth} characters of one; "
                    f"this version takes up to {MOST_STEPS} steps, and {MOST} characters"
                )


def _steps(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part in order, those of its sequences included."""
    if depth > MOST_STEPS:
        raise DogeExportError("tokenizer.json: its sequences are nested too deep")
    if isinstance(part, dict):
        yield part
        for name in _CHILDREN:
            for child in part.get(name) or () if isinstance(part.get(name), list) else ():
                yield from _steps(child, depth + 1)
