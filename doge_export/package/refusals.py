"""Refusal, before any work, of a path that cannot become an output or must not be replaced by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.package.disk import reason
from doge_export.package.fingerprint import names_in
from doge_export.package.in_place import content_of
from doge_export.package.mounts import is_renamable, mounts_in
from doge_export.paths import EXPORTED, exists

Recorded = Callable[[Path], set[str] | None]
"""Returns the relative names of the files that doge-export wrote into a folder; None if it did not write the folder."""


def recorded_by_manifest(folder: Path) -> set[str] | None:
    """Return the names in the manifest of an exported folder, of any version; None if there is no such manifest."""
    file = folder / EXPORTED
    try:
        values = read_object(file)
    except DogeExportError:
        return None
    if not isinstance(values.get("doge_export"), str):
        return None
    files = values.get("files")
    return {EXPORTED, *files} if isinstance(files, dict) else None


def refuse_output(
    output: Path, *, force: bool, protected: Iterable[Path] = (), recorded: Recorded = recorded_by_manifest
) -> None:
    """Refuse a path that cannot become an exported folder, or a folder that must not be replaced by one.

    Args:
        output: the folder to write.
        force: replace it if it is not empty.
        protected: folders and files that must not be deleted.
        recorded: tells what doge-export wrote into a folder; nothing else is ever replaced.

    Raises:
        DogeExportError: `output` is a file or the current directory, cannot be written, is not empty (without `force`),
            or holds the home directory, a git repository, a mount point, a protected path or anything that doge-export
            did not write (with `force`).
    """
    try:
        output = output.expanduser().resolve()
        _refuse_place(output)
        if output.is_dir() and content_of(output):
            _refuse_content(output, force, protected, recorded)
    except RuntimeError as error:  # ~name, and there is no such user
        raise DogeExportError(f"output {output}: there is no such home directory; choose another folder") from error
    except OSError as error:
        raise DogeExportError(f"output {output} cannot be used: {reason(error)}; choose another folder") from error
    except ValueError as error:  # a NUL character
        raise DogeExportError(f"output {str(output)!r} cannot be used: {error}; choose another folder") from error


def _refuse_place(output: Path) -> None:
    here = Path.cwd()
    if output == here or output in here.parents:
        raise DogeExportError(f"output {output} is the current directory or holds it; name a new folder inside it")
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not nearest.is_dir():
        raise DogeExportError(f"output {output} cannot be a folder: {nearest} is a file; choose another folder")
    written = output if output.is_dir() and not is_renamable(output) else next(p for p in output.parents if p.exists())
    if not os.access(written, os.W_OK | os.X_OK):
        raise DogeExportError(
            f"cannot create a folder in {written}: it is read-only; choose an output folder elsewhere"
        )


def _refuse_content(output: Path, force: bool, protected: Iterable[Path], recorded: Recorded) -> None:
    if not force:
        raise DogeExportError(f"output {output} is not empty; choose another folder, or replace it with --force")
    home = Path.home().resolve()
    inside = next((path for path in protected if path.resolve().is_relative_to(output)), None)
    mounted = mounts_in(output)
    why: str | None
    if output == home or output in home.parents:
        why = "is or holds the home directory"
    elif exists(output / ".git"):
        why = "holds a git repository"
    elif inside is not None:
        why = f"holds {inside}, which is being read"
    elif mounted:
        why = f"holds {mounted[0]}, on which something is mounted"
    else:
        why = _stranger(output, recorded(output))
    if why is not None:
        raise DogeExportError(f"--force would delete {output}, which {why}; choose another folder")


def _stranger(output: Path, ours: set[str] | None) -> str | None:
    """Return what a folder holds that doge-export did not write; None if it wrote everything."""
    if ours is None:
        return "doge-export did not write (nothing in it says so)"
    others = sorted(names_in(output) - ours)
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    return f"holds {others[0]}{more}, which doge-export did not write" if others else None
