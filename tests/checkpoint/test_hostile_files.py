"""Files of a checkpoint that are no regular files, or hold numbers and depths that no writer would give them."""

import os
import shutil

import pytest

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError
from doge_export.regular_file import read_regular


@pytest.fixture
def folder(checkpoint, tmp_path):
    shutil.copytree(checkpoint(num_hidden_layers=2), tmp_path / "checkpoint", copy_function=os.link)
    return tmp_path / "checkpoint"


def refused(folder, message):
    with pytest.raises(DogeExportError, match=message) as error:
        open_checkpoint(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "adapter_config.json",
    ],
)
def test_a_named_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, "is a named pipe, expected a regular file")


def test_a_device_is_not_read(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    refused(folder, "is a device, expected a regular file")


def test_reading_a_folder_leaves_nothing_open(tmp_path):
    for _ in range(2):
        with pytest.raises(DogeExportError, match="is a folder, expected a regular file"):
            read_regular(tmp_path)
        lowest = os.open(tmp_path, os.O_RDONLY)
        os.close(lowest)
    with pytest.raises(DogeExportError, match="is a folder"):
        read_regular(tmp_path)
    assert os.open(tmp_path, os.O_RDONLY) == lowest
    os.close(lowest)


def test_an_index_that_is_a_pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    refused(folder, "is a named pipe")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"hidden_size": ' + "9" * 400 + "}", '{"rope_theta": 1e999}'])
def test_config_is_one_line(folder, content):
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(content)
    refused(folder, r"config\.json is not valid JSON")
