"""A folder that keeps its name: its old or its new content is whole after an exception or a kill at any step."""

import itertools
from pathlib import Path

import pytest

from doge_export.package import atomic, in_place, leftovers
from doge_export.package.atomic import staged_folder
from doge_export.package.fingerprint import names_in

OLD = {"doge_export.json": "old", "onnx/model.onnx": "old", "old": "old"}
NEW = {"doge_export.json": "new", "onnx/model.onnx": "new", "new": "new"}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for an interruption, or for the end of the process."""


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def output(tmp_path):
    fill(tmp_path / "out", OLD)
    fill(tmp_path / "out" / leftovers.inside(leftovers.STAGED), NEW)
    return tmp_path / "out"


def stop_at(monkeypatch, limit: int) -> list[Path]:
    """Raise Killed at the rename number `limit`, once; return what it was of, when it was."""
    rename, replace, count, stopped = Path.rename, Path.replace, itertools.count(1), []

    def counted(call):
        def step(self, target):
            if next(count) == limit:
                stopped.append(self)
                raise Killed
            return call(self, target)

        return step

    monkeypatch.setattr(Path, "rename", counted(rename))
    monkeypatch.setattr(Path, "replace", counted(replace))
    return stopped


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("limit", range(1, 8))
def test_every_step(output, monkeypatch, limit, killed):
    real = in_place.recover
    with monkeypatch.context() as patched:
        stopped = stop_at(patched, limit)
        if killed:  # then this process repairs nothing
            patched.setattr(in_place, "recover", lambda folder: None if stopped else real(folder))
        with pytest.raises(Killed):
            in_place.move_up(output / leftovers.inside(leftovers.STAGED), output)
    in_place.recover(output)  # by the next run
    assert content(output) == (OLD if limit <= 4 else NEW)
    assert not any(name.startswith(".") for name in entries(output))


def test_between_the_steps_it_is_no_exported_folder(output, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        patched.setattr(in_place, "recover", lambda folder: None)
        with pytest.raises(Killed):
            in_place.move_up(output / leftovers.inside(leftovers.STAGED), output)
    assert not (output / "doge_export.json").exists()


def test_a_folder_of_a_containers_image_cannot_be_renamed(tmp_path, monkeypatch):
    """overlayfs refuses with EXDEV."""
    fill(tmp_path / "out", OLD)
    rename = Path.rename

    def refuse(self, target):
        if self == tmp_path / "out":
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with staged_folder(tmp_path / "out", force=True, recorded=names_in) as folder:
        fill(folder, NEW)
    assert content(tmp_path) == {f"out/{name}": text for name, text in NEW.items()}


def test_what_was_replaced_never_comes_back(tmp_path):
    """A run that ended while it deleted the old content, after the new one had its place."""
    output = tmp_path / "out"
    fill(output, NEW)
    (output / leftovers.inside(leftovers.COMPLETE)).mkdir()
    fill(output / leftovers.inside(leftovers.REPLACED), {"onnx/model.onnx": "old"})
    in_place.recover(output)
    assert content(output) == NEW
    assert entries(output) == sorted({Path(name).parts[0] for name in NEW})
