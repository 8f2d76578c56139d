import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from doge_export.errors import DogeExportError, RunFailed
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
