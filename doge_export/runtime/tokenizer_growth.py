"""Bound on how much longer a tokenizer.json may make a text, before its library is handed one."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from doge_export.errors import DogeExportError

MOST = 64
"""Characters that the steps of a part may make of one. The map of T5 and XLM-R makes 18 of one (U+FDFA)."""

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
            try:
                growth *= _growth(part, step)
            except (AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"step {number} of its {part} is malformed ({error!r})") from error
            if number > MOST_STEPS or growth > MOST:
                raise DogeExportError(
                    f"tokenizer.json: the {part} has {number} steps or more, which make {growth} characters of one; "
                    f"this version takes up to {MOST_STEPS} steps, and {MOST} characters"
                )


def _growth(part: str, step: Mapping[str, Any]) -> int:
    """Return how many characters, or tokens, a step makes of one at most."""
    texts = max([1, *(len(step[name]) for name in _TEXTS if isinstance(step.get(name), str))])
    match step.get("type"):
        case "ByteLevel" if part in ("normalizer", "pre_tokenizer"):
            return 4  # bytes of a character, each of which becomes a character
        case "Precompiled" if isinstance(charsmap := step.get("precompiled_charsmap"), str):
            return max(texts, _longest_replacement(base64.b64decode(charsmap)))
        case "TemplateProcessing":
            return max(texts, *map(_longest_template, (step.get("single"), step.get("pair"))), _longest_special(step))
    return texts


def _longest_replacement(charsmap: bytes) -> int:
    """Return the characters of the longest text in SentencePiece's map: uint32 size of a trie, the trie, and texts."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(len(text.decode(errors="replace")) for text in texts.split(b"\0"))


def _longest_template(pieces: Any) -> int:
    """Return a number beyond `MOST` if a template is that long, else how often it repeats the text."""
    pieces = pieces if isinstance(pieces, list) else []
    if len(pieces) > MOST:
        return len(pieces)
    texts = [piece["Sequence"].get("id") for piece in pieces if isinstance(piece, dict) and "Sequence" in piece]
    return max(map(texts.count, texts), default=1)


def _longest_special(step: Mapping[str, Any]) -> int:
    """Return a number beyond `MOST` if one special token of a template stands for that many ids, else 1."""
    tokens = step.get("special_tokens")
    longest = max((len(token["ids"]) for token in tokens.values()), default=0) if isinstance(tokens, dict) else 0
    return longest if longest > MOST else 1


def _steps(part: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part in order, those of its sequences included."""
    if depth > MOST_STEPS:
        raise DogeExportError("tokenizer.json: its sequences are nested too deep")
    if isinstance(part, dict):
        yield part
        for name in _CHILDREN:
            for child in part.get(name) or () if isinstance(part.get(name), list) else ():
                yield from _steps(child, depth + 1)
