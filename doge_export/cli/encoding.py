"""Standard streams and locales that are not UTF-8: no character ends a run, and the locale is named as the cause."""

from __future__ import annotations

import codecs
import contextlib
import sys

from doge_export import console

_HANDLER = "doge_export.shown"
_ADVICE = "set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8"

_replaced: set[str] = set()
"""Encodings that lacked a character in this run."""


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a question mark for a character that the stream lacks; under UTF-8 the escape of a lone surrogate."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if _is_utf8(error.encoding):
        return codecs.backslashreplace_errors(error)
    _replaced.add(error.encoding)
    return "?" * (error.end - error.start), error.end


codecs.register_error(_HANDLER, _replace)


def accept_every_character() -> None:
    """Let stdout and stderr replace characters that they cannot encode, instead of raising."""
    _replaced.clear()
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                reconfigure(errors=_HANDLER)


def tell_replaced() -> None:
    """Say once that characters were replaced, and how to get them."""
    if _replaced:
        names = ", ".join(sorted(_replaced))
        console.log(f"note: the output is {names}, which lacks some characters: they are shown as ?; {_ADVICE}")
        _replaced.clear()


def locale_cause() -> str | None:
    """Return a sentence on the locale where it is not UTF-8; None where it is."""
    encoding = sys.getfilesystemencoding()
    return None if _is_utf8(encoding) else f"the locale's encoding is {encoding}, not UTF-8: {_ADVICE}"


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False
