"""Whether results can be written is known before the work."""

from __future__ import annotations

import re

import pytest

from doge_export import DogeExportError
from doge_export.paths import check_file, check_folder


@pytest.mark.parametrize("name", ["a", "a/b/c", "."])
def test_a_folder_that_can_be_made(tmp_path, monkeypatch, name):
    check_folder("--results", tmp_path / name)
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    check_folder("--results", type(tmp_path)(name))


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
