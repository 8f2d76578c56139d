"""Trained checkpoints that are part of the package, so that everything can be tried offline."""

from __future__ import annotations

from pathlib import Path

from doge_export.errors import DogeExportError

BUNDLED = ("doge-nano", "doge-nano-moe")


def bundled(name: str) -> Path:
    """Return the folder of a bundled checkpoint.

    Raises:
        DogeExportError: this installation has no checkpoint of that name.
    """
    folder = Path(__file__).parent / name
    if name not in BUNDLED:
        raise DogeExportError(f"no bundled checkpoint is called {name!r}; there are {', '.join(BUNDLED)}")
    if not (folder / "config.json").is_file():
        raise DogeExportError(f"the bundled checkpoint {name} is missing from this installation; install it again")
    return folder
