import errno
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package import atomic_file
from doge_export.package.atomic_file import written_file


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(file, data: bytes = b"new") -> None:
    with written_file("--details", file) as stream:
        stream.write(data)


def test_a_file_appears_at_the_end(tmp_path):
    with written_file("--details", tmp_path / "file") as stream:
        stream.write(b"x")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"x"
    assert entries(tmp_path) == ["file"]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_the_old_content_stays(tmp_path, raised):
    (tmp_path / "file").write_text("old")
    with pytest.raises(raised), written_file("--details", tmp_path / "file") as stream:
        stream.write(b"half")
        raise raised
    assert (tmp_path / "file").read_text() == "old"
    assert entries(tmp_path) == ["file"]


def test_links_and_modes_stay(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600


def test_devices_stay():
    write(Path(os.devnull))
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_device_is_one_line():
    with pytest.raises(RunFailed, match=r"^--details cannot be written to /dev/full: no space left on device$"):
        write(Path("/dev/full"))


@pytest.mark.parametrize(
    "writer", [lambda stream: stream.write(bytes(2 << 20)), lambda s: np.save(s, np.zeros(1 << 18))]
)
def test_a_full_disk_leaves_the_old_content(small_disk, writer):
    (small_disk / "file").write_text("old")
    with pytest.raises(RunFailed, match=r"cannot be written to .*file: "), written_file("x", small_disk / "file") as s:
        writer(s)
    assert (small_disk / "file").read_text() == "old"
    assert entries(small_disk) == ["file"]


def test_what_a_killed_run_left_is_deleted(tmp_path):
    (tmp_path / ".file.1.doge-export-tmp").write_text("half")
    (tmp_path / ".other.1.doge-export-tmp").write_text("half")
    write(tmp_path / "file")
    assert entries(tmp_path) == [".other.1.doge-export-tmp", "file"]


def test_what_another_user_left_is_left_alone(tmp_path, monkeypatch):
    """In a folder such as /tmp, where a user deletes and opens nothing of another one."""
    theirs = tmp_path / ".file.1.doge-export-tmp"
    theirs.write_text("half")
    opened, deleted = os.open, Path.unlink

    def refuse(call):
        def refusing(path, *arguments, **options):
            if Path(path) == theirs:
                raise PermissionError(errno.EPERM, "not permitted", str(path))
            return call(path, *arguments, **options)

        return refusing

    monkeypatch.setattr(Path, "unlink", refuse(deleted))
    write(tmp_path / "file", b"1")
    monkeypatch.setattr(os, "open", refuse(opened))
    write(tmp_path / "file", b"2")
    assert (tmp_path / "file").read_bytes() == b"2"
    assert entries(tmp_path) == [theirs.name, "file"]


@pytest.mark.parametrize("moment", ["created", "whole"])
def test_a_run_that_tidies_up_leaves_what_another_one_writes(tmp_path, monkeypatch, moment):
    """Neither before its file is locked, nor before it has its name."""
    tidied = []

    def tidying(call):
        def tidies_first(*arguments, **options):
            if not tidied:
                tidied.append(True)
                write(tmp_path / "file", b"theirs")
            return call(*arguments, **options)

        return tidies_first

    if moment == "created":
        monkeypatch.setattr(atomic_file, "lock_path", tidying(atomic_file.lock_path))
        (tmp_path / "file").touch()
        monkeypatch.setattr(atomic_file, "_tidy_after_killed_runs", unless_first(atomic_file._tidy_after_killed_runs))
    else:
        monkeypatch.setattr(atomic_file, "_replace", tidying(atomic_file._replace))
    write(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours" and tidied
    assert entries(tmp_path) == ["file"]


def unless_first(call):
    calls = []

    def skipping(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            call(*arguments)

    return skipping


def test_two_threads_write_one_file(tmp_path):
    with written_file("--details", tmp_path / "file") as first:
        first.write(b"first")
        write(tmp_path / "file", b"second")
        first.write(b", whole")
    assert (tmp_path / "file").read_bytes() == b"first, whole"
    assert entries(tmp_path) == ["file"]


def test_a_long_name_and_a_number_that_is_taken(tmp_path, monkeypatch):
    name = "x" * (255 - len("..1234567.doge-export-tmp"))
    numbers = iter([1234567, 7654321])
    monkeypatch.setattr(atomic_file.secrets, "randbelow", lambda most: next(numbers) % most)
    monkeypatch.setattr(atomic_file, "_tidy_after_killed_runs", lambda file: None)
    (tmp_path / f".{name}.1234567.doge-export-tmp").touch()
    write(tmp_path / name)
    assert entries(tmp_path) == [f".{name}.1234567.doge-export-tmp", name]


def test_a_mounted_file_is_written_in_place(tmp_path):
    (tmp_path / "host").write_text("a longer old text")
    (tmp_path / "file").write_text("")
    done = subprocess.run(["mount", "--bind", tmp_path / "host", tmp_path / "file"], capture_output=True)
    if done.returncode:
        pytest.skip("cannot mount")
    try:
        write(tmp_path / "file")
        assert (tmp_path / "host").read_text() == "new"
    finally:
        subprocess.run(["umount", tmp_path / "file"], check=True)
    assert entries(tmp_path) == ["file", "host"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DogeExportError, match=r"--details cannot be written to .*: no such file or directory"):
        write(tmp_path / "missing" / "file")
