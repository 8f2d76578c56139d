"""What a folder takes over from a checkpoint, and what it says of it."""

from __future__ import annotations

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.files import companions
from doge_export.package.provenance import copy_companions, source_of
from doge_export.paths import protected_by


def test_copies_of_links_to_read_only_files_are_files_that_can_be_written(tmp_path):
    """As a hub cache holds them."""
    snapshot, out = tmp_path / "snapshot", tmp_path / "out"
    for folder in (snapshot, out):
        folder.mkdir()
    blob = tmp_path / "blob"
    blob.write_text("{}")
    blob.chmod(0o444)
    (snapshot / "config.json").symlink_to(blob)
    (snapshot / "modeling_doge.py").write_text("raise SystemExit")
    copy_companions(companions(snapshot), out)
    assert [file.name for file in out.iterdir()] == ["config.json"]
    copied = out / "config.json"
    assert not copied.is_symlink() and copied.read_text() == "{}"
    assert copied.stat().st_mode & 0o200


def test_the_source_is_a_whole_path_and_names_what_was_read(checkpoint, monkeypatch):
    folder = checkpoint(num_hidden_layers=1)
    monkeypatch.chdir(folder.parent)
    source = source_of(open_checkpoint(folder.name))
    assert (source.model, source.revision) == (str(folder.resolve()), None)
    assert {name: entry.bytes for name, entry in source.files.items()} == {
        name: (folder / name).stat().st_size for name in ("config.json", "model.safetensors")
    }
    assert source_of(open_checkpoint("doge-nano")).model == "doge-nano"


def test_what_is_read_is_protected(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert protected_by("~/model") == [tmp_path / "model"]
    assert protected_by("owner/model") == protected_by("x" * 5000) == []
    assert protected_by(tmp_path) == [tmp_path]
