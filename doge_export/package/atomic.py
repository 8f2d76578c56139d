"""Atomic writing of an output folder: it appears whole or not at all.

A run writes into a temporary sibling of the output and renames it into place at the end. While it runs it holds an
flock on that sibling, so the next run can tell a leftover of a killed run from the folder of a live one even when the
process id was given to another process. If folders cannot be locked (Windows, some network file systems), the process
id in the name decides alone.

`--force` takes two renames: the old folder is moved aside, and the new one takes its name. A run killed between the two
leaves the old folder under its temporary name; the next run puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.package.lock import lock_folder, process_alive

_STAGED = "tmp"
_REPLACED = "old"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def staged_folder(output: Path | str, *, force: bool = False, protected: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a temporary sibling of `output` to write into; it becomes `output` when the body ends.

    When the body raises, the sibling is removed and an existing `output` is as it was.

    Args:
        output: the folder to write.
        force: replace it if it is not empty.
        protected: folders and files that must outlive the run, such as the checkpoint being read.

    Raises:
        DogeExportError: `output` is refused by `refuse_output`, is being written by another run, cannot be written, or
            the disk fills up.
    """
    output = Path(output).expanduser().resolve()
    made: list[Path] = []
    try:
        try:
            if output.parent.is_dir():
                _tidy_after_killed_runs(output)
            refuse_output(output, force=force, protected=protected)
            made = [path for path in output.parents if not path.exists()]  # innermost first
            output.parent.mkdir(parents=True, exist_ok=True)
            staging = _create_sibling(output)
        except OSError as error:
            raise DogeExportError(
                f"cannot create a folder in {output.parent}: {_reason(error)}; choose an output folder elsewhere"
            ) from error
        with _held(staging, output):
            yield staging
            _flush_to_disk(staging)
            _move_into_place(staging, output, force=force)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DogeExportError(
            f"cannot write {output}: {_reason(error)}; make room there or choose another folder"
        ) from error
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails for the parents of a finished output, which are not empty


def refuse_output(output: Path, *, force: bool, protected: Iterable[Path] = ()) -> None:
    """Refuse a path that cannot become an exported folder, or a folder that must not be replaced by one.

    Args:
        output: the folder to write.
        force: replace it if it is not empty.
        protected: folders and files that must not be deleted.

    Raises:
        DogeExportError: `output` is a file, a mount point or the current directory, is not empty (without `force`), or
            holds the home directory, a git repository or a protected path (with `force`).
    """
    try:
        output = output.expanduser().resolve()
        _refuse(output, force=force, protected=protected)
    except RuntimeError as error:  # ~name, and there is no such user
        raise DogeExportError(f"output {output}: there is no such home directory; choose another folder") from error
    except OSError as error:
        raise DogeExportError(f"output {output} cannot be used: {_reason(error)}; choose another folder") from error


def _refuse(output: Path, *, force: bool, protected: Iterable[Path]) -> None:
    here = Path.cwd()
    if output == here or output in here.parents:
        raise DogeExportError(f"output {output} is the current directory or holds it; name a new folder inside it")
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not nearest.is_dir():
        raise DogeExportError(f"output {output} cannot be a folder: {nearest} is a file; choose another folder")
    if os.path.ismount(output):  # the method of Path raises on Windows
        raise DogeExportError(f"output {output} is a mount point, which cannot be replaced; name a folder inside it")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise DogeExportError(f"output {output} is not empty; choose another folder, or replace it with --force")
    home = Path.home().resolve()
    inside = next((path for path in protected if path.resolve().is_relative_to(output)), None)
    if output == home or output in home.parents:
        reason = "is or holds the home directory"
    elif (output / ".git").exists():
        reason = "holds a git repository"
    elif inside is not None:
        reason = f"holds {inside}, which is being read"
    else:
        return
    raise DogeExportError(f"--force would delete {output}, which {reason}; choose another folder")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _sibling(output: Path, kind: str) -> Path:
    return output.with_name(f".{output.name}.{os.getpid()}.doge-export-{kind}")


def _create_sibling(output: Path) -> Path:
    staging = _sibling(output, _STAGED)
    try:
        staging.mkdir()
    except FileExistsError as error:
        raise _busy(output) from error
    return staging


def _busy(output: Path) -> DogeExportError:
    return DogeExportError(f"another run is writing {output}; wait for it, or choose another folder")


@contextlib.contextmanager
def _held(staging: Path, output: Path) -> Iterator[None]:
    with lock_folder(staging) as locked:
        if locked is False:
            raise _busy(output)
        try:
            yield
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _tidy_after_killed_runs(output: Path) -> None:
    name = re.compile(rf"\.{re.escape(output.name)}\.(\d+)\.doge-export-({_STAGED}|{_REPLACED})")
    for path in sorted(output.parent.iterdir()):
        match = name.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        owner = int(match[1])
        foreign_owner_lives = owner != os.getpid() and process_alive(owner)
        with lock_folder(path) as locked:
            if locked is False or (locked is None and foreign_owner_lives):
                continue
            if foreign_owner_lives and not any(path.iterdir()):
                continue  # the other run created it just now and is about to lock it
            if match[2] == _REPLACED and not output.exists():
                path.rename(output)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(staging: Path, output: Path, *, force: bool) -> None:
    if force and output.exists() and any(output.iterdir()):
        _swap(staging, output)
    else:
        try:
            if os.name == "nt" and output.exists():
                output.rmdir()  # Windows does not rename over an empty folder
            staging.rename(output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise DogeExportError(f"output {output} was filled meanwhile; choose another folder") from error
    _sync(output.parent)


def _swap(staging: Path, output: Path) -> None:
    replaced = _sibling(output, _REPLACED)
    with lock_folder(output) as locked:
        if locked is False:
            raise _busy(output)
        output.rename(replaced)
        try:
            staging.rename(output)
        except BaseException:
            replaced.rename(output)
            raise
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
