"""Folders of target native: one node for the whole decoder, run by doge-export and by onnxruntime alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import numpy as np
import onnxruntime
import pytest
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded

from doge_export import export
from doge_export.errors import DogeExportError
from doge_export.package.manifest import MODEL, read_manifest
from doge_export.runtime.inspection import inspect_folder
from doge_export.runtime.loading import load, open_decoder


@pytest.fixture(scope="module")
def folder(checkpoint, native_file, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(native_file))
        out = tmp_path_factory.mktemp("native") / "out"
        export(checkpoint(num_hidden_layers=2), out, target="native", validate=False, max_length=72)
    return out


@pytest.fixture
def graph_decoder(exported):
    folder = exported()
    return open_decoder(folder, read_manifest(folder), threads=1, backend="graph")


@pytest.fixture
def session(folder, native_file):
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(native_file))
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])


def feeds(ids, past, mask=None, **others):
    mask = np.ones_like(ids) if mask is None else mask
    numbers = {name: np.array([value], np.int64) for name, value in others.items()}
    return {"input_ids": ids, "attention_mask": mask, "past_length": np.array([past], np.int64), **numbers}


def test_the_folder_holds_one_node_and_the_weights(folder):
    manifest = read_manifest(folder)
    assert manifest.target == "native" and manifest.graphs[MODEL].operators == {"doge.Decoder": 1}
    assert manifest.files.keys() >= {MODEL, f"{MODEL}_data"}
    assert (folder / MODEL).stat().st_size < 2000


def test_our_session_and_onnxruntime_give_the_logits_of_the_graph(folder, native_library, session, graph_decoder):
    ids, mask = distinct_ids(3, 40), left_padded(40, 0, 3, 8)
    graph_decoder.reset(3)
    expected = graph_decoder.forward(ids, mask)
    decoder = load(folder, threads=1).decoder
    assert decoder.backend == "native"
    decoder.reset(3)
    assert_equal_to_rounding(decoder.forward(ids, mask)[mask == 1], expected[mask == 1], ONNXRUNTIME)
    found = [session.run(None, feeds(ids[:, :30], 0, mask[:, :30]))[0]]
    found += [session.run(None, feeds(ids[:, at : at + 1], at))[0] for at in range(30, 40)]
    assert_equal_to_rounding(np.concatenate(found, axis=1)[mask == 1], expected[mask == 1], ONNXRUNTIME)


def test_sequences_go_on_and_back_side_by_side(session):
    ids = distinct_ids(2, 12)
    (whole,) = session.run(None, feeds(ids[:1], 0, sequence=1))
    (other,) = session.run(None, feeds(ids[1:], 0, sequence=2))
    (again,) = session.run(None, feeds(ids[:1, 5:], 5, sequence=1))
    assert_equal_to_rounding(again, whole[:, 5:])
    last = feeds(ids[1:, -1:], 11, sequence=2) | {"num_logits_to_keep": np.array(1, np.int64)}
    assert_equal_to_rounding(session.run(None, last)[0], other[:, -1:])


def test_threads_run_sequences_at_the_same_time(session):
    ids = distinct_ids(4, 20)
    expected = [session.run(None, feeds(row[None], 0, sequence=number))[0] for number, row in enumerate(ids)]
    found = {}

    def run(number):
        for _ in range(5):
            found[number] = session.run(None, feeds(ids[number][None], 0, sequence=number))[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(expected):
        np.testing.assert_array_equal(found[number], logits)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        (feeds(distinct_ids(1, 4), 7, sequence=77), "past_length is not 0"),
        (feeds(distinct_ids(1, 4), -1), "negative"),
        (feeds(distinct_ids(1, 80), 0), "exceed the maximum length of 72"),
        (feeds(np.array([[10**9]]), 0), "not in the vocabulary"),
        (feeds(distinct_ids(1, 4), 0, np.ones((1, 5), np.int64)), "attention_mask has another shape"),
        (feeds(np.zeros((1, 0), np.int64), 0), "no rows of tokens"),
    ],
    ids=["past", "negative", "long", "id", "mask", "empty"],
)
def test_what_does_not_fit_is_told(session, feed, message):
    with pytest.raises(Exception, match=message):
        session.run(None, feed)


def test_a_damaged_weight_file_is_told(folder, native_library, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    data = copy / f"{MODEL}_data"
    content = data.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:8] + b"\x63" + content[9:], content[::-1]):
        data.write_bytes(damaged)
        with pytest.raises(DogeExportError, match="export it again") as caught:
            load(copy)
        assert "\n" not in str(caught.value)
    text = (copy / "doge_export.json").read_text()
    data.write_bytes(content)
    (copy / "doge_export.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    with pytest.raises(DogeExportError, match="of another model than the manifest says"):
        load(copy)


def test_a_native_folder_has_no_graph_to_run_or_quantise(folder, native_library):
    from doge_export import quantize

    with pytest.raises(DogeExportError, match="has the native form of the weights alone"):
        load(folder, backend="graph")
    with pytest.raises(DogeExportError, match="export the checkpoint again with --target native"):
        quantize(folder, ["int8"])
    names = [port["name"] for port in inspect_folder(folder).ports[MODEL]["inputs"]]
    assert names == ["input_ids", "attention_mask", "past_length", "sequence", "num_logits_to_keep"]


def test_a_file_that_is_no_library_is_told_by_all_who_need_it(folder, monkeypatch, tmp_path):
    (tmp_path / "library.so").write_bytes(b"no library")
    monkeypatch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(tmp_path / "library.so"))
    for reader in (load, inspect_folder):
        with pytest.raises(DogeExportError, match="is no library of the native decoder") as caught:
            reader(folder)
        assert "\n" not in str(caught.value)


def test_models_without_a_native_form_are_refused_before_the_work(native_library, tmp_path):
    from pathlib import Path

    golden = Path(__file__).parents[1] / "golden" / "g4b-additive-ratio"
    with pytest.raises(DogeExportError, match="cannot be exported for target native: it does not compute"):
        export(golden, tmp_path / "out", target="native", max_length=32)
    assert not (tmp_path / "out").exists()


PLAIN = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
ids, past, answer = numpy.array([[1, 5, 9, 13]], numpy.int64), 0, []
for _ in range(12):
    feeds = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "past_length": numpy.array([past])}
    (logits,) = session.run(None, feeds)
    past += ids.shape[1]
    answer.append(int(logits[0, -1].argmax()))
    ids = numpy.array([answer[-1:]], numpy.int64)
print(onnxruntime.__version__, answer)
"""


@pytest.mark.slow
def test_an_older_onnxruntime_runs_it_too(folder, native_file, tmp_path):
    """One binary: nothing of onnxruntime is linked."""
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "onnxruntime==1.23.2", "numpy"]
    if subprocess.run(install, check=False, capture_output=True).returncode:
        pytest.skip("onnxruntime 1.23.2 cannot be installed here")
    answers = []
    for program in (python, sys.executable):
        command = [program, "-c", PLAIN, native_file, folder / MODEL]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        version, _, answer = done.stdout.partition(" ")
        answers.append((version, answer))
    assert answers[0][0] == "1.23.2" and answers[0][1] == answers[1][1]
