"""The native form of weights is made once, mapped ever after, and never trusted when it is not what was written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids

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


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
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


def test_what_a_manifest_leaves_out_is_not_left_out_for_others(folder, kept, tmp_path):
    """Two folders of one graph, one of which denies its weighted residuals, have a form each."""
    liar = shutil.copytree(folder, tmp_path / "liar")
    text = (liar / "doge_export.json").read_text()
    (liar / "doge_export.json").write_text(text.replace('"weighted_residuals": true', '"weighted_residuals": false'))
    wrong, right = logits(liar), logits(folder)
    assert len(kept()) == 2 and np.abs(wrong - right).max() > 0.01
    graph = open_decoder(folder, read_manifest(folder), threads=1, backend="graph")
    assert_equal_to_rounding(right, graph.forward(IDS), ONNXRUNTIME)


def test_a_cache_that_is_only_read_serves_for_ever(folder, kept, packings, monkeypatch):
    """As it lies in a container's image: copied, so of other times, on a file system that nobody writes."""
    first = logits(folder)
    (file,) = kept()

    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "utime", refuse)
        patch.setattr(cache, "_DAY", -1)
        np.testing.assert_array_equal(logits(folder), first)
    file.touch()
    monkeypatch.setattr(cache, "_make_way", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(logits(folder), first)
    assert len(packings) == 1 and kept() == [file]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_what_another_user_owns_is_made_anew(folder, kept, packings, suffix):
    """Whoever writes both a file and its record vouches for any content."""
    logits(folder)
    (file,) = kept()
    os.chown(file.with_name(file.name + suffix), 12345, -1)
    for _ in range(2):
        logits(folder)
    assert len(packings) == 2


def test_a_file_in_a_folder_that_cannot_be_written_stays_as_it_is(folder, kept, monkeypatch):
    """Another process may have mapped it."""
    logits(folder)
    (file,) = kept()
    record = file.with_name(f"{file.name}.json")
    record.unlink()
    before = file.read_bytes()
    allowed = os.access
    monkeypatch.setattr(cache.os, "access", lambda path, mode: path != file.parent and allowed(path, mode))
    with pytest.warns(UserWarning, match="not kept: permission denied"):
        logits(folder)
    assert file.read_bytes() == before and not record.exists()


def test_links_in_the_cache_are_replaced_not_followed(folder, kept, tmp_path):
    logits(folder)
    (file,) = kept()
    for each in (file, file.with_name(f"{file.name}.json")):
        precious = tmp_path / f"precious{each.suffix}"
        precious.write_text("precious")
        each.unlink()
        each.symlink_to(precious)
    logits(folder)
    assert not file.is_symlink() and kept() == [file]
    assert {path.read_text() for path in tmp_path.glob("precious*")} == {"precious"}


def test_a_graph_that_is_replaced_while_it_is_packed_is_kept_under_no_name(folder, kept, monkeypatch):
    content = cache.WeightFile.content

    def replaced(self):
        yield from content(self)
        (folder / MODEL).touch()

    monkeypatch.setattr(cache.WeightFile, "content", replaced)
    with pytest.raises(DogeExportError, match="was changed while it was read"):
        logits(folder)
    assert not kept() and not list((folder.parent / "cache" / "native").glob("*.doge*"))


def test_threads_that_open_a_folder_at_once_share_one_file(folder, kept):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: logits(folder), range(4)))
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])
    assert len(kept()) == 1 and not [path for path in kept()[0].parent.iterdir() if path.name.startswith(".")]


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
