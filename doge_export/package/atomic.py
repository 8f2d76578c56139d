"""Atomic writing of an output folder: it appears whole or not at all.

A run writes into a temporary sibling of the output and renames it into place at the end. While it runs it holds an
flock on that sibling, so the next run can tell a leftover of a killed run from the folder of a live one even when the
process id was given to another process; and an flock on an output that it is to replace, so that no second run replaces
it at the same time. If folders cannot be locked (Windows, some network file systems), the process id in the name
decides alone.

`--force` exchanges the two folders in one step, or, where the system cannot, in two renames: a run killed between the
two leaves the old folder under its temporary name, and the next run puts it back. An output that cannot be renamed is
written from inside, see `in_place`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.package import in_place, leftovers
from doge_export.package.disk import is_full, reason
from doge_export.package.exchange import exchange
from doge_export.package.lock import lock_path, process_alive
from doge_export.package.mounts import is_renamable
from doge_export.package.refusals import Recorded, recorded_by_manifest, refuse_output

_NOT_RENAMABLE = {errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES}


@contextlib.contextmanager
def staged_folder(
    output: Path | str,
    *,
    force: bool = False,
    protected: Iterable[Path] = (),
    recorded: Recorded = recorded_by_manifest,
) -> Iterator[Path]:
    """Yield a temporary folder to write into; it becomes `output` when the body ends.

    When the body raises, it is removed and an existing `output` is as it was.

    Args:
        output: the folder to write.
        force: replace it if it is not empty.
        protected: folders and files that must outlive the run, such as the checkpoint being read.
        recorded: tells what doge-export wrote into a folder; nothing else is ever replaced.

    Raises:
        DogeExportError: `output` is refused by `refuse_output`, is being written by another run, cannot be written, or
            the disk fills up.
    """
    output = Path(output).expanduser().resolve()
    made: list[Path] = []
    with contextlib.ExitStack() as held:
        held.callback(_remove_empty, made)
        try:
            if output.parent.is_dir():
                _tidy_after_killed_runs(output)
            if output.is_dir():
                _hold(held, output, output)
                in_place.recover(output)
            refuse_output(output, force=force, protected=protected, recorded=recorded)
            made += [path for path in output.parents if not path.exists()]  # innermost first
            output.parent.mkdir(parents=True, exist_ok=True)
            staging = _create_staging(output)
            held.callback(shutil.rmtree, staging, ignore_errors=True)
            _hold(held, staging, output)
        except OSError as error:
            raise DogeExportError(
                f"cannot create a folder in {output.parent}: {reason(error)}; choose an output folder elsewhere"
            ) from error
        try:
            yield staging
            _flush_to_disk(staging)
            if force:
                refuse_output(output, force=True, protected=protected, recorded=recorded)  # it may have been filled
            _move_into_place(staging, output, force=force)
        except OSError as error:
            if not is_full(error):
                raise
            raise DogeExportError(
                f"cannot write {output}: {reason(error)}; make room there or choose another folder"
            ) from error


def _hold(held: contextlib.ExitStack, path: Path, output: Path) -> None:
    if held.enter_context(lock_path(path)) is False:
        raise _busy(output)


def _busy(output: Path) -> DogeExportError:
    return DogeExportError(f"another run is writing {output}; wait for it, or choose another folder")


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails for the parents of a finished output, which are not empty


def _create_staging(output: Path) -> Path:
    stays = output.is_dir() and not is_renamable(output)
    name = leftovers.inside(leftovers.STAGED) if stays else leftovers.beside(output.name, leftovers.STAGED)
    staging = output / name if stays else output.with_name(name)
    try:
        staging.mkdir()
    except FileExistsError as error:
        raise _busy(output) from error
    return staging


def _tidy_after_killed_runs(output: Path) -> None:
    name = leftovers.pattern_beside(output.name)
    for path in sorted(output.parent.iterdir()):
        match = name.fullmatch(path.name)
        # Another user's leftover is left alone, and so is one that another run has just deleted.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            if match is not None and path.is_dir() and not path.is_symlink():
                _tidy(path, output, int(match[1]), match[2])


def _tidy(path: Path, output: Path, owner: int, kind: str) -> None:
    foreign_owner_lives = owner != os.getpid() and process_alive(owner)
    with lock_path(path) as locked:
        if locked is False or (locked is None and foreign_owner_lives):
            return
        if foreign_owner_lives and not any(path.iterdir()):
            return  # the other run created it just now and is about to lock it
        if kind == leftovers.REPLACED and not output.exists():
            path.rename(output)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _move_into_place(staging: Path, output: Path, *, force: bool) -> None:
    if output.is_dir() and in_place.content_of(output):
        if not force:
            raise DogeExportError(f"output {output} was filled meanwhile; choose another folder")
        if staging.parent == output:
            in_place.move_up(staging, output)
        elif not exchange(staging, output):
            _swap(staging, output)
    elif staging.parent == output:
        in_place.move_up(staging, output)
    else:
        if os.name == "nt" and output.exists():
            output.rmdir()  # Windows does not rename over an empty folder
        staging.rename(output)
    _sync(output.parent)


def _swap(staging: Path, output: Path) -> None:
    """Exchange two folders by two renames, where the system has no call for it."""
    replaced = output.with_name(leftovers.beside(output.name, leftovers.REPLACED))
    try:
        output.rename(replaced)
        staging.rename(output)
    except OSError as error:
        if error.errno not in _NOT_RENAMABLE or replaced.exists():
            raise
        # A folder of a container's image, for example.
        in_place.move_up(in_place.moved_into(staging, output), output)
    finally:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        shutil.rmtree(replaced, ignore_errors=True)


def _flush_to_disk(folder: Path) -> None:
    """Flush files to disk before the rename, or a crash after it could leave a whole-looking folder of empty files."""
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle of a folder to flush
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
