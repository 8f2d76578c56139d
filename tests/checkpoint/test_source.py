"""Which words name a folder and which a hub id; none of these cases may reach for the network."""

import os
import tempfile
from pathlib import Path

import pytest

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("", "no model given: name a folder or a hub id"),
        (" ", "no model given"),
        ("nowhere", r"there is no folder 'nowhere': check the path; a hub id is owner/name; bundled are doge-nano, "),
        ("./nowhere", r"there is no folder '\./nowhere': check the path$"),
        ("../nowhere", r"there is no folder '\.\./nowhere'"),
        ("~/nowhere", r"there is no folder '~/nowhere'"),
        ("~nobody-of-this-name/x", r"there is no folder '~nobody"),
        ("/nowhere", r"there is no folder '/nowhere'"),
        ("a/b/c", r"there is no folder 'a/b/c'"),
        ("owner/", r"there is no folder 'owner/'"),
        ("owner/model name", r"there is no folder 'owner/model name'"),
        ("owner\\model", r"there is no folder"),
        ("a\nb", r"there is no folder 'a\\nb'"),
        ("nul\0", r"there is no folder"),
        ("x" * 5000, r"there is no folder"),
        ("owner/" + "x" * 5000, r"neither a folder nor a hub id: a hub id is owner/name|there is no folder"),
        ("owner/a..b", r"'owner/a\.\.b' is neither a folder nor a hub id"),
        ("https://hub.example/owner/model", r"is an address: give a folder or a hub id \(owner/name\)"),
    ],
)
def test_refused(model, pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DogeExportError, match=pattern) as caught:
        open_checkpoint(model)
    assert "\n" not in str(caught.value)


def test_a_file_instead_of_its_folder(dense):
    with pytest.raises(DogeExportError, match=r"model\.safetensors' is a file: give the folder"):
        open_checkpoint(dense / "model.safetensors")


def test_an_exported_folder_instead_of_its_checkpoint(nano_folder):
    with pytest.raises(
        DogeExportError, match=r"is an exported folder, not a checkpoint: give the one .* from, '.*nano'$"
    ):
        open_checkpoint(nano_folder)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(DogeExportError, match=r"has no config\.json: not a model folder"):
        open_checkpoint(tmp_path)


def test_a_folder_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent, "model")
        folder.mkdir(mode=0)
        user = os.geteuid()
        if user == 0:  # root may read everything, so be nobody for a moment
            os.seteuid(65534)
        try:
            with pytest.raises(DogeExportError, match="model cannot be read: Permission denied"):
                open_checkpoint(folder)
        finally:
            os.seteuid(user)


def test_a_revision_of_a_folder(dense):
    with pytest.raises(DogeExportError, match="is a local folder: --revision is for hub ids only"):
        open_checkpoint(dense, revision="main")
