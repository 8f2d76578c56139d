"""The commands that messages recommend install this package without an index that knows it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Parsed

from doge_export import installing
from doge_export.errors import DogeExportError
from doge_export.installing import install_command, need

ROOT = Path(__file__).parents[1]
EXTRAS = (None, "export", "gpu", "trt", "test")
METADATA = [
    "numpy>=2",
    "onnx>=1.18; extra == 'export'",
    "torch<2.14,>=2.11; extra == 'export'",
    "onnx>=1.18; extra == 'trt'",
    "tensorrt>=10.9; extra == 'trt'",
]


@pytest.fixture
def installed(monkeypatch):
    """Makes the package an installed copy: gives it what pip noted of its origin, and none of its extras' packages."""
    monkeypatch.setattr(installing, "_checkout", lambda: None)
    monkeypatch.setattr(installing, "_declared", lambda: (METADATA, ["export", "trt"]))
    monkeypatch.setattr(installing, "_installed", lambda name: "2.3" if name == "numpy" else None)
    return lambda noted: monkeypatch.setattr(installing, "_direct_url", lambda: noted)


def words(extra: str | None) -> list[str]:
    command = shlex.split(install_command(extra))
    assert command[command.index("install") - 1] == "pip"
    return command[command.index("install") + 1 :]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_checkout_is_installed_from_where_it_is(extra):
    assert words(extra) == ["-e", f"{ROOT}[{extra}]" if extra else str(ROOT)]


def test_a_wheel_or_a_folder_that_is_still_there_is_named(installed, tmp_path):
    wheel = tmp_path / "with space" / "doge_export-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {}})
    assert words("export") == [f"{wheel}[export]"]
    installed({"url": tmp_path.as_uri(), "dir_info": {}})
    assert words("trt") == [f"{tmp_path}[trt]"]


def test_a_repository_is_named_with_its_commit(installed):
    noted = {"url": "https://example.org/doge.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}}
    installed(noted)
    assert words("export") == ["doge-export[export] @ git+https://example.org/doge.git@ab12"]


@pytest.mark.parametrize("noted", [{}, {"url": "file:///no/such/file.whl", "archive_info": {}}])
def test_else_the_requirements_that_are_missing_are_named(installed, noted):
    installed(noted)
    assert words("export") == ["onnx>=1.18", "torch<2.14,>=2.11"]
    assert set(words("trt")) == {"onnx>=1.18", "torch<2.14,>=2.11", "tensorrt>=10.9"}
    for word in words("trt"):
        Parsed(word)


def test_an_installed_copy_reads_its_metadata(monkeypatch):
    monkeypatch.setattr(installing, "_checkout", lambda: None)
    lines, extras = installing._declared()
    assert {"export", "trt", "test"} <= set(extras) and any(line.startswith("onnxruntime") for line in lines)
    text = importlib.metadata.distribution("doge-export").read_text("direct_url.json")
    assert installing._direct_url() == json.loads(text or "{}")


def test_a_checkout_and_its_metadata_require_the_same(monkeypatch):
    ours = {(item.name, item.extra) for item in installing.requirements()}
    assert {("torch", "export"), ("tensorrt", "trt"), ("numpy", None), ("pytest", "test")} <= ours


def test_what_is_missing_is_said_at_once():
    need("export", "torch", "json")
    with pytest.raises(DogeExportError, match="`export`, and no_such, nor_this are not installed"):
        need("export", "no_such", "torch", "nor_this")


def test_nothing_recommends_a_package_of_an_index_that_has_none():
    """Neither a message, nor a page, nor a card."""
    files = [*ROOT.glob("*.md"), *(ROOT / "doge_export").rglob("*.py"), *(ROOT / "doge_export").rglob("*.md")]
    files += [*(ROOT / "samples").rglob("*.md"), *(ROOT / "plugins").rglob("*.md")]
    found = [str(file) for file in files if re.search(r"pip install .?doge-export", file.read_text(encoding="utf-8"))]
    assert len(files) > 50 and found == []
