"""The native form of weights is made once, mapped ever after, and never trusted when it is not what was written."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from doge_runs import distinct_ids

from doge_export.errors import DogeExportError
from doge_export.package.manifest import MODEL, read_manifest
from doge_export.runtime.loading import load, open_decoder
from doge_export.runtime.native import cache
from doge_export.runtime.native.backend import native_library as opened_library

IDS = distinct_ids(1, 12)


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported(), tmp_path / "folder")


@pytest.fixture
def kept(native_library, monkeypatch, tmp_path):
    """Returns the files of a cache of the test's own."""
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "native").glob("*.doge"))


@pytest.fixture
def packings(monkeypatch):
    """Counts how often weights are packed."""
    seen = []
    content = cache.WeightFile.content
    monkeypatch.setattr(cache.WeightFile, "content", lambda self: seen.append(self) or content(self))
    return seen


def logits(folder: Path) -> np.ndarray:
    decoder = open_decoder(folder, read_manifest(folder), threads=1, backend="native")
    return decoder.forward(IDS)


def test_weights_are_packed_once(folder, kept, packings):
    first = logits(folder)
    (file,) = kept()
    np.testing.assert_array_equal(logits(folder), first)
    assert len(packings) == 1 and kept() == [file]
    (folder / MODEL).touch()  # a file of another time is read again, and is found to be the same
    np.testing.assert_array_equal(logits(folder), first)
    assert len(packings) == 1
    moved = folder.rename(folder.with_name("moved"))
    np.testing.assert_array_equal(logits(moved), first)
    assert len(packings) == 1


def damage_a_weight(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-400, os.SEEK_END)
        stream.write(b"\xff" * 16)


def keep_time(change):
    """The change, and then the time that the file had before: its size and time tell nothing."""

    def changed(file: Path) -> None:
        before = file.stat()
        change(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return changed


def of_another_layout(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(8)
        stream.write((99).to_bytes(4, "little"))
    record = file.with_name(f"{file.name}.json")  # whoever writes the record too is stopped by the library
    facts = json.loads(record.read_text()) | cache._looks(file.stat())
    record.write_text(json.dumps(facts))


CHANGES = {
    "a weight": damage_a_weight,
    "a weight, time kept": keep_time(damage_a_weight),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "replaced": lambda file: file.write_bytes(b"nonsense" * 100),
    "another layout": of_another_layout,
    "no record": lambda file: file.with_name(f"{file.name}.json").unlink(),
    "a broken record": lambda file: file.with_name(f"{file.name}.json").write_text("[1,"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_made_anew(folder, kept, packings, change):
    first = logits(folder)
    (file,) = kept()
    change(file)
    np.testing.assert_array_equal(logits(folder), first)
    assert len(packings) == 2
    np.testing.assert_array_equal(logits(folder), first)
    assert len(packings) == 2


def test_a_graph_that_the_manifest_does_not_record_is_left_to_onnxruntime(folder, kept):
    content = bytearray((folder / MODEL).read_bytes())
    content[-1] ^= 1
    (folder / MODEL).write_bytes(content)
    with pytest.raises(DogeExportError, match="not the one that the manifest records") as caught:
        logits(folder)
    assert "\n" not in str(caught.value) and not kept()


def test_another_manifest_makes_another_form(folder, kept):
    logits(folder)
    text = (folder / "doge_export.json").read_text()
    (folder / "doge_export.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    logits(folder)
    assert len(kept()) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(folder, kept, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.warns(UserWarning, match="native weights are not kept"):
        logits(folder)


def test_a_cache_that_is_a_file(folder, native_library, monkeypatch, tmp_path):
    """Weights are packed in memory, with one note."""
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "good"))
        first = logits(folder)
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="native weights are not kept: not a directory"):
        np.testing.assert_array_equal(logits(folder), first)


def test_old_forms_are_deleted(folder, kept, monkeypatch):
    monkeypatch.setattr(cache, "MOST_FILES", 2)
    text = (folder / "doge_export.json").read_text()
    made = []
    for number in range(4):
        changed = text.replace('"rms_norm_eps": 1e-06', f'"rms_norm_eps": 0.{number + 1}')
        (folder / "doge_export.json").write_text(changed)
        logits(folder)
        (new,) = [file for file in kept() if file not in made]
        made.append(new)
        os.utime(new.with_name(f"{new.name}.json"), (number, number))
    assert kept() == sorted(made[-2:])
    assert len(list(made[-1].parent.glob("*.json"))) == 2


def test_a_session_tells_what_computes(folder, kept):
    session = load(folder, threads=1, backend="native")
    chosen = opened_library().usable_instruction_sets[-1]
    assert session.decoder.backend == "native"
    assert session.decoder.computes_by == f"native decoder, {chosen}, 1 thread"
    assert load(folder, threads=1, backend="graph").decoder.computes_by == "onnxruntime"
