"""Paths that a user names are checked before the work: what passes can be written, what is refused cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doge_export import DogeExportError
from doge_export.paths import check_file, check_folder


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", [".", "there", "there/new", "a", "a/b/c"])
def test_a_folder_that_can_be_made(tmp_path, monkeypatch, name, relative):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    folder = Path(name) if relative else tmp_path / name
    check_folder("--results", folder)
    assert sorted(tmp_path.rglob("*")) == before, "the check itself must make nothing"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result").write_text("written")


@pytest.mark.parametrize(
    ("name", "said"), [("file", ": is a file"), ("file/x", "/file is a file"), ("file/x/y", "/file is a")]
)
def test_a_folder_that_cannot(tmp_path, name, said):
    (tmp_path / "file").touch()
    with pytest.raises(DogeExportError, match=rf"^--results .*{re.escape(said)}.*name a folder$"):
        check_folder("--results", tmp_path / name)
    with pytest.raises((FileExistsError, NotADirectoryError)):
        (tmp_path / name).mkdir(parents=True)


def test_a_file(tmp_path):
    check_file("--plot", tmp_path / "new.png")
    (tmp_path / "file").touch()
    check_file("--plot", tmp_path / "file")
    for name, said in (
        (".", "is a folder"),
        ("missing/new.png", "its folder does not exist"),
        ("file/x", "its folder"),
    ):
        with pytest.raises(DogeExportError, match=f"^--plot .*: {said}"):
            check_file("--plot", tmp_path / name)
