"""Readers for the small JSON files of an exported folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.regular_file import is_there


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file; an empty one if there is no such file.

    Raises:
        DogeExportError: the file cannot be read, is no regular file, or holds no JSON object.
    """
    return read_object(file) if is_there(file) else {}


@contextlib.contextmanager
def damage_of(file: Path) -> Iterator[None]:
    """Turn errors of code that interprets the content of `file` into DogeExportError with the file's name.

    Raises:
        DogeExportError: the body raised AttributeError, KeyError, TypeError, ValueError or OverflowError, since a value
            is missing, of another type or too large.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DogeExportError(f"{file} does not hold what it should ({reason}); export the model again") from error
