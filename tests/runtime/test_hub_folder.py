"""Exported folders in the cache of the hub's client: opened by id, verified and quantised through their links."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from click.testing import CliRunner

import doge_export
from doge_export import DogeExportError, load
from doge_export.cli import main
from doge_export.package import verify, verify_files
from doge_export.runtime.hub_folder import local_folder

SHA = "0123456789" * 4


def cached(folder: Path, cache: Path, name: str = "someone/doge-onnx") -> Path:
    """Put a folder into a cache as huggingface_hub does: files in blobs/, relative links in snapshots/SHA/."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / SHA
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    for file in (file for file in folder.rglob("*") if file.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def snapshot(exported, tmp_path, monkeypatch):
    """The snapshot of someone/doge-onnx in a cache without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cached(exported(max_length=32), tmp_path)


def test_a_hub_id_is_opened_like_its_folder(snapshot, exported):
    assert local_folder("someone/doge-onnx") == snapshot
    ids = [[3, 4, 5]]
    assert (load("someone/doge-onnx").logits(ids) == load(exported(max_length=32)).logits(ids)).all()


def test_inspect_shows_an_export_by_its_hub_id(snapshot, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    call = ["inspect", "someone/doge-onnx", "--cache-dir", str(tmp_path), "--offline"]
    shown = CliRunner().invoke(main, [*call, "--verify"])
    assert shown.exit_code == 0 and "onnx/model.onnx" in shown.output
    facts = json.loads(CliRunner().invoke(main, [*call, "--json"]).stdout)
    assert facts["folder"] == str(snapshot) and facts["target"] == "onnxruntime"
    missing = CliRunner().invoke(main, ["inspect", "someone/else", "--offline"])
    assert missing.exit_code == 2 and "not complete in the local cache" in missing.output


def test_a_path_goes_before_a_hub_id(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    assert local_folder("someone/doge-onnx") == Path("someone/doge-onnx")  # a misspelt path, not looked up
    with pytest.raises(DogeExportError, match=r"folder someone/doge-onnx does not exist"):
        load("someone/doge-onnx")


def test_what_the_hub_does_not_give_is_one_line(snapshot, tmp_path):
    with pytest.raises(DogeExportError, match=r"folder someone/else does not exist, and as a hub id: .*not complete"):
        load("someone/else")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cached(tmp_path / "model", tmp_path, "someone/model")
    with pytest.raises(DogeExportError, match=r"is not an exported folder.*doge-export onnx someone/model OUT"):
        load("someone/model")


def test_links_to_the_blobs_of_the_same_repository_are_files(snapshot, tmp_path):
    assert verify_files(snapshot) == []
    blob = (snapshot / "config.json").resolve()
    elsewhere = tmp_path / blob.name
    shutil.copyfile(blob, elsewhere)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(elsewhere)
    assert verify_files(snapshot) == ["config.json: a symbolic link where a file was written"]
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(blob)
    blob.write_text("{}")
    assert [problem[:20] for problem in verify_files(snapshot)] == ["config.json: changed"]
    blob.unlink()
    assert len(verify_files(snapshot)) == 1  # a link to nothing


def test_links_of_a_folder_that_is_no_snapshot_stay_refused(snapshot):
    elsewhere = shutil.move(snapshot.parent, snapshot.parent.with_name("elsewhere"))
    assert all("a symbolic link" in problem for problem in verify_files(elsewhere / SHA))


def test_quantising_a_snapshot_leaves_the_blobs_alone(snapshot):
    blobs = {blob: blob.read_bytes() for blob in (snapshot.parent.parent / "blobs").iterdir()}
    doge_export.quantize(snapshot, ["int8"], max_kl=9.0)
    assert verify(snapshot).graphs.keys() == {"onnx/model.onnx", "onnx/model_quantized.onnx"}
    assert not any(path.is_symlink() for path in snapshot.rglob("*"))
    assert all(blob.read_bytes() == content for blob, content in blobs.items())
