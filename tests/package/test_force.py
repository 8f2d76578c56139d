"""--force replaces what doge-export wrote and nothing else."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from doge_export.errors import DogeExportError
from doge_export.package import refuse_output, staged_folder
from doge_export.package.lock import lock_path
from doge_export.package.mounts import mount_points


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def export(output: Path, text: str = "new") -> None:
    """Write what passes for an exported folder."""
    with staged_folder(output, force=True) as folder:
        fill(folder, text)


def fill(folder: Path, text: str) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(text)
    (folder / "doge_export.json").write_text(json.dumps({"doge_export": "0", "files": {"onnx/model.onnx": {}}}))


def text_in(output: Path) -> str:
    return (output / "onnx" / "model.onnx").read_text()


def test_an_export_is_replaced(tmp_path):
    export(tmp_path / "out", "old")
    export(tmp_path / "out")
    assert text_in(tmp_path / "out") == "new"
    assert entries(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("holiday.jpg", "a photo"),
        ("project/.git/HEAD", "ref: refs/heads/main"),
        ("doge_export.json", "not JSON"),
        ("doge_export.json", "[]"),
        ("doge_export.json", "[" * 100_000),
        ("doge_export.json", '{"files": {}}'),
    ],
)
def test_another_folder_is_not(tmp_path, name, content):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(DogeExportError, match=r"--force would delete .*out, which doge-export did not write"):
        export(tmp_path / "out")
    with pytest.raises(DogeExportError, match=r"--force would delete"):
        refuse_output(tmp_path / "out", force=True)
    assert file.read_text() == content


@pytest.mark.parametrize("name", ["notes.txt", "onnx/tuned.onnx", "project/.git/HEAD"])
def test_an_export_with_something_of_the_user_is_not(tmp_path, name):
    export(tmp_path / "out", "old")
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(DogeExportError, match=rf"holds {name}, which doge-export did not write"):
        export(tmp_path / "out")
    assert text_in(tmp_path / "out") == "old"
    assert file.read_text() == "mine"


def test_what_arrives_during_the_run_is_kept(tmp_path):
    export(tmp_path / "out", "old")
    with pytest.raises(DogeExportError, match="holds mine"), staged_folder(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
        (tmp_path / "out" / "mine").write_text("x")
    assert text_in(tmp_path / "out") == "old"
    assert entries(tmp_path / "out") == ["doge_export.json", "mine", "onnx"]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_a_second_run_that_replaces_the_same_folder_is_refused(tmp_path):
    export(tmp_path / "out", "old")
    with lock_path(tmp_path / "out"), pytest.raises(DogeExportError, match="another run is writing"):
        export(tmp_path / "out")
    assert text_in(tmp_path / "out") == "old"


def test_a_folder_that_holds_a_volume_is_not_replaced(volume):
    (volume / "mine").write_text("x")
    with pytest.raises(DogeExportError, match=r"holds .*a volume, on which something is mounted"):
        refuse_output(volume.parent, force=True)
    assert volume in mount_points()


def test_a_volume_is_written_from_inside(volume):
    export(volume, "old")
    assert text_in(volume) == "old"
    with pytest.raises(DogeExportError, match="is not empty"), staged_folder(volume):
        pass
    export(volume)
    assert text_in(volume) == "new"
    assert entries(volume) == ["doge_export.json", "onnx"]
    with pytest.raises(ValueError), staged_folder(volume, force=True) as folder:
        (folder / "half").write_text("x")
        raise ValueError
    assert entries(volume) == ["doge_export.json", "onnx"]


def test_a_read_only_volume_is_refused_before_the_work(volume):
    subprocess.run(["mount", "-o", "remount,ro,bind", volume], check=True)
    for output in (volume, volume / "out", volume / "a" / "b"):
        with pytest.raises(DogeExportError, match=r"cannot create a folder in .*a volume: it is read-only"):
            refuse_output(output, force=False)
