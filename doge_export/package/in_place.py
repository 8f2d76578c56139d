"""Replacement of the content of a folder that cannot be renamed: a volume, or a folder in one that is not writable.

The new content is written into a temporary folder inside it. Then the old content moves into another one, the finished
content gets a name that marks it as finished, and moves up. A run killed on the way leaves what `recover` undoes before
that name and completes after it. The manifest leaves first and arrives last, so that what a killed run leaves does not
pass for an exported folder.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

from doge_export.package import leftovers
from doge_export.paths import EXPORTED

_SYSTEMS_OWN = "lost+found"
"""Folder that the system keeps at the root of a volume."""


def content_of(folder: Path) -> list[Path]:
    """Return the entries of a folder that are the user's or an output's, the manifest first."""
    ours = leftovers.INSIDE
    entries = (path for path in folder.iterdir() if path.name != _SYSTEMS_OWN and ours.fullmatch(path.name) is None)
    return sorted(entries, key=lambda path: (path.name != EXPORTED, path.name))


def move_up(staging: Path, output: Path) -> None:
    """Let the content of `staging` take the place of the content of `output`; after an exception one of them is whole.

    Args:
        staging: a folder inside `output`, with a name of `leftovers.inside`.
        output: the folder.
    """
    replaced = output / leftovers.inside(leftovers.REPLACED)
    try:
        entries = content_of(output)
        if entries:
            replaced.mkdir()
        for path in entries:
            _move(path, replaced / path.name)
        staging.rename(output / leftovers.inside(leftovers.COMPLETE))
        recover(output)
    except BaseException:
        recover(output)
        raise


def moved_into(staging: Path, output: Path) -> Path:
    """Move a temporary folder into the output whose content it is to replace; return its path there."""
    inside = output / leftovers.inside(leftovers.STAGED)
    _move(staging, inside)
    return inside


def recover(output: Path) -> None:
    """Complete or undo what a run began in a folder, which the caller has locked."""
    found: dict[str, list[Path]] = {leftovers.COMPLETE: [], leftovers.REPLACED: [], leftovers.STAGED: []}
    for path in sorted(output.iterdir()):
        match = leftovers.INSIDE.fullmatch(path.name)
        if match is not None and path.is_dir() and not path.is_symlink():
            found[match[2]].append(path)
    complete, replaced = found[leftovers.COMPLETE], found[leftovers.REPLACED]
    for folder in complete or replaced:
        for path in reversed(content_of(folder)):
            _move(path, output / path.name)
        if not complete:
            folder.rmdir()
    for folder in (*replaced, *found[leftovers.STAGED]):
        shutil.rmtree(folder, ignore_errors=True)
    # Last, for as long as there is a complete one, what was replaced is known to be old.
    if not any(folder.exists() for folder in replaced):
        for folder in complete:
            folder.rmdir()


def _move(path: Path, target: Path) -> None:
    """Rename, or move the files of a folder one by one where it has another file system below it or beside it."""
    try:
        if target.is_dir() and not target.is_symlink() and path.is_dir():
            raise OSError(errno.EXDEV, "moved in part before")
        path.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True)
            for inner in sorted(path.iterdir()):
                _move(inner, target / inner.name)
            path.rmdir()
        else:
            shutil.copy2(path, target, follow_symlinks=False)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
