import hashlib
import json

import pytest
from manifests import minimal_manifest

from doge_export.errors import DogeExportError
from doge_export.package import Fingerprint, Manifest, read_manifest, verify, verify_files, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with two files and its manifest."""
    folder = tmp_path / "out"
    (folder / "onnx").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "onnx" / "model.onnx").write_bytes(bytes(range(256)) * 1000)
    write_manifest(folder, minimal_manifest(seconds=1.5))
    return folder


def edit(folder, **changes):
    file = folder / "doge_export.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_every_file_is_hashed(folder):
    manifest = read_manifest(folder)
    assert manifest.format == 1
    assert manifest.doge_export == "0.1.0"
    assert manifest.files == {
        "config.json": Fingerprint(hashlib.sha256(b"{}").hexdigest(), 2),
        "onnx/model.onnx": Fingerprint(hashlib.sha256(bytes(range(256)) * 1000).hexdigest(), 256000),
    }
    assert verify_files(folder) == []
    assert verify(folder) == manifest


def test_writing_again_gives_the_same_bytes(folder):
    before = (folder / "doge_export.json").read_bytes()
    write_manifest(folder, read_manifest(folder))
    assert (folder / "doge_export.json").read_bytes() == before
    assert before.endswith(b"}\n")


def test_one_flipped_bit_is_found(folder):
    file = folder / "onnx" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[100_000] ^= 1
    file.write_bytes(content)
    assert [problem.split(" (")[0] for problem in verify_files(folder)] == ["onnx/model.onnx: changed"]
    with pytest.raises(DogeExportError, match=r"differs from its manifest: onnx/model.onnx: changed .*export or"):
        verify(folder)


def test_truncated_missing_and_unexpected_files_are_found(folder):
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    (folder / "config.json").unlink()
    (folder / "onnx" / "model.onnx_data").write_text("x")
    problems = verify_files(folder)
    assert [problem.split(" (")[0] for problem in problems] == [
        "config.json: missing",
        "onnx/model.onnx: changed",
        "onnx/model.onnx_data: unexpected, not in the manifest",
    ]
    with pytest.raises(DogeExportError, match=r"config.json: missing \(and 2 more\)"):
        verify(folder)


def test_what_a_download_leaves_behind_is_no_difference(folder):
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    (folder / ".gitattributes").write_text("x")
    assert verify_files(folder) == []
    (folder / "onnx" / ".gitattributes").write_text("x")
    assert verify_files(folder) == ["onnx/.gitattributes: unexpected, not in the manifest"]


def test_links_are_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "onnx" / "model.onnx").rename(tmp_path / "elsewhere" / "model.onnx")
    (folder / "onnx").rmdir()
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    assert verify_files(folder) == [
        "onnx/model.onnx: missing",
        "onnx: unexpected, not in the manifest",
    ]
    (folder / "onnx").unlink()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").symlink_to(tmp_path / "elsewhere" / "model.onnx")
    assert verify_files(folder) == ["onnx/model.onnx: a symbolic link where a file was written"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "onnx/../../secret", "a\\b", "C:x", ""])
def test_names_that_leave_the_folder_are_refused(folder, name):
    (folder.parent / "secret").write_text("x")
    files = json.loads((folder / "doge_export.json").read_text())["files"]
    edit(folder, files={**files, name: {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}})
    assert verify_files(folder) == [f"{name}: the manifest names a file outside the folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a manifest of doge-export"),
        ("{}", "lacks format, expected a number from 1; export the model again"),
        ('{"format": 1}', "lacks doge_export, expected a version; export the model again"),
        ('{"format": 2, "files": {}}', "format 2, this doge-export reads up to 1; install a newer"),
    ],
)
def test_unreadable_manifest(folder, content, message):
    (folder / "doge_export.json").write_text(content)
    with pytest.raises(DogeExportError, match=message):
        read_manifest(folder)


MANIFEST_KEYS = [key for key in minimal_manifest().to_dict() if key not in ("versions", "seconds", "peak_memory_bytes")]


@pytest.mark.parametrize("key", [key for key in MANIFEST_KEYS if key not in ("task", "assumptions", "cache")])
def test_a_missing_value_is_one_line(folder, key):
    file = folder / "doge_export.json"
    manifest = json.loads(file.read_text())
    del manifest[key]
    file.write_text(json.dumps(manifest))
    with pytest.raises(DogeExportError, match=rf"doge_export\.json lacks {key}, .*; export the model again$"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in MANIFEST_KEYS for value in (True, 1.5, ["x"])),
        *((key, None) for key in MANIFEST_KEYS if key != "cdmoe_routing"),
        ("format", "1"),
        ("format", 0),
        ("source", {}),
        ("source", {"model": 3, "revision": None}),
        ("graphs", {"onnx/model.onnx": None}),
        ("graphs", {"onnx/model.onnx": {"opset": {}}}),
        ("graphs", {"onnx/model.onnx": {"dtype": "float32", "opset": {"": 21}, "ir_version": 10, "nodes": 1}}),
        ("versions", {"python": 3}),
        ("source", {"model": "x", "revision": 3}),
        ("source", {"model": "x", "revision": None, "files": {"a": "0"}}),
        ("task", "translation"),
        ("assumptions", []),
        ("assumptions", {"generation": "G4a", "colour": "red"}),
        ("assumptions", {"generation": 4}),
        ("assumptions", {"task": None}),
        ("max_length", "64"),
        ("max_length", 0),
        ("chunkable_length", -1),
        ("cdmoe_routing", "per_token"),
        ("validation", {}),
        ("files", {"config.json": "0" * 64}),
        ("files", {"config.json": {"sha256": "0" * 64}}),
    ],
)
def test_a_wrong_value_is_one_line(folder, key, value):
    edit(folder, **{key: value})
    with pytest.raises(DogeExportError, match=rf"doge_export\.json: {key} is .*, expected .*; export the") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction", "text-classification"])
def test_every_task_is_read(folder, task):
    edit(folder, task=task, architecture={"labels": ["good", "bad"]})
    assert read_manifest(folder).task == task


def test_folders_from_before_there_were_tasks_hold_language_models(folder):
    file = folder / "doge_export.json"
    manifest = json.loads(file.read_text())
    del manifest["task"], manifest["assumptions"]
    file.write_text(json.dumps(manifest))
    read = read_manifest(folder)
    assert (read.task, read.assumptions) == ("text-generation", {})
    assert read.to_dict() == {**manifest, "task": "text-generation", "assumptions": {}}
    assert verify_files(folder) == []


@pytest.mark.parametrize("routing", [None, "reference", "per-token"])
def test_every_routing_is_read(folder, routing):
    edit(folder, cdmoe_routing=routing)
    assert read_manifest(folder).cdmoe_routing == routing


def test_a_name_that_no_folder_can_have(tmp_path):
    with pytest.raises(DogeExportError, match="does not exist"):
        read_manifest(tmp_path / ("x" * 300))


def test_no_manifest(folder, tmp_path):
    with pytest.raises(DogeExportError, match="does not exist"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(DogeExportError, match="is a file; name the folder"):
        read_manifest(folder / "config.json")
    (folder / "doge_export.json").unlink()
    with pytest.raises(DogeExportError, match=r"has no doge_export\.json, so it is not an exported folder"):
        read_manifest(folder)


def test_numbers_that_are_not_json_are_a_bug(folder):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_manifest(folder, minimal_manifest(seconds=float("nan")))


def test_fields_of_a_newer_version_are_ignored(folder):
    """Of the manifest, of its source, of a graph and of a file's fingerprint."""
    before = read_manifest(folder)
    values = json.loads((folder / "doge_export.json").read_text())
    for part in (values, values["source"], values["graphs"]["onnx/model.onnx"], values["files"]["config.json"]):
        part["colour"] = "red"
    (folder / "doge_export.json").write_text(json.dumps(values))
    assert read_manifest(folder) == before


def test_what_is_written_is_what_is_read(folder):
    manifest = read_manifest(folder)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
