"""Small disks and volumes, which only root can mount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(*arguments: object) -> None:
    """Mount something, or skip the test."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A folder bound to another one of the same file system, as a container's volumes are."""
    (tmp_path / "host").mkdir()
    (tmp_path / "a volume").mkdir()
    mount("--bind", tmp_path / "host", tmp_path / "a volume")
    yield tmp_path / "a volume"
    subprocess.run(["umount", tmp_path / "a volume"], check=True)
