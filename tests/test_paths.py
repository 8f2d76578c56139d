"""Paths that a user names are checked before the work: what passes can be written, what is refused cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doge_export import DogeExportError
from doge_export.paths import check_file, check_folder, read_text


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


@pytest.mark.parametrize("name", ["nul\0", "\udcff", "\ud800x", "owner/\udce4"])
def test_paths_that_are_no_text_are_one_line_everywhere(tmp_path, monkeypatch, name):
    """Also those of an option, of bytes that are no UTF-8, and of a folder that exists."""
    from doge_export import export, load, quantize, validate
    from doge_export.checkpoint import open_checkpoint
    from doge_export.package import verify

    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: open_checkpoint(name),
        lambda: open_checkpoint("doge-nano", adapter=name),
        lambda: open_checkpoint("doge-nano", cache_dir=name, adapter="no/folder"),
        lambda: export("doge-nano", name),
        lambda: export("doge-nano", "out", report=name),
        lambda: load(name),
        lambda: verify(name),
        lambda: validate(name),
        lambda: quantize(name, ["int8"]),
    ):
        with pytest.raises(DogeExportError, match=r"not Unicode text|NUL") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
        str(caught.value).encode("utf-8")
    assert not list(tmp_path.iterdir())


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\n\xef\xbb\xbfb")
    assert read_text(tmp_path / "text") == "a\r\n\ufeffb"  # inside a text it is a character
