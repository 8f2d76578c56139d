"""Text files that a user names."""

from __future__ import annotations

import os
from pathlib import Path

from doge_export.errors import DogeExportError


def read_text(file: str | Path) -> str:
    """All of a file, byte for byte. Raises DogeExportError where it cannot be read or is not UTF-8."""
    try:
        return Path(file).read_bytes().decode("utf-8")
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {os.strerror(error.errno or 0).lower()}") from error
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
