"""The decoder of a GPU with the CPU as its device: the same calls of onnxruntime, on a machine without a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from random_doge import CONFIG

from doge_export import load
from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.manifest import MODEL, read_manifest
from doge_export.runtime.decoders.best_token import BestToken
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.runtime.decoders.in_place import InPlaceDecoder
from doge_export.runtime.decoders.on_device import OnDeviceDecoder
from doge_export.runtime.device import check_runs_on_cuda, open_graph_on_cuda
from doge_export.runtime.graph import open_graph

IDS = np.random.default_rng(0).integers(3, CONFIG["vocab_size"], (2, 40))


@pytest.fixture
def folder(exported):
    return exported()


@pytest.fixture
def both(folder):
    """The decoder of the CPU and that of a device, over one graph."""
    session, limits = open_graph(folder, threads=1), SequenceLimits.of(read_manifest(folder))
    return InPlaceDecoder(session, limits), OnDeviceDecoder(session, limits)


def values(logits):
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(logits, np.float32))


@pytest.mark.parametrize("chunks", [[40], [1] * 40, [13, 2, 9, 1, 1, 14]])
def test_logits_and_caches_are_those_of_the_cpu(both, chunks):
    """Selected keys, too: this configuration's window is shorter than its texts."""
    assert both[1]._score_width > 0
    for rows in (1, 2):
        logits = []
        for decoder in both:
            decoder.reset(rows)
            ends = np.cumsum(chunks)
            parts = [decoder.forward(IDS[:rows, end - size : end]) for size, end in zip(chunks, ends, strict=True)]
            logits.append(np.concatenate(parts, axis=1))
        assert np.array_equal(*logits)
        for expected, found in zip(*(decoder.cache_snapshot() for decoder in both), strict=True):
            assert np.array_equal(expected[0], found[0]) and np.array_equal(expected[1], found[1])


def test_a_padded_batch_is_read(both):
    mask = np.ones((2, 20), np.int64)
    mask[0, :7] = 0
    found = []
    for decoder in both:
        decoder.reset(2)
        decoder.forward(IDS[:, :20], mask)
        found.append([decoder.predict(IDS[:, 20 + step : 21 + step]) for step in range(3)][-1])
    for expected, prediction in zip(*found, strict=True):
        assert prediction.argmax() == expected.argmax()
        assert np.array_equal(prediction.logits(), expected.logits())


def test_a_greedy_choice_leaves_the_logits_there(both, monkeypatch):
    _, decoder = both
    decoder.predict(IDS[:1, :5])
    (prediction,) = decoder.predict(IDS[:1, 5:6])
    with monkeypatch.context() as patch:
        patch.setattr(type(prediction), "logits", lambda self: pytest.fail("the logits came to the host"))
        best = prediction.argmax()
    assert best == prediction.logits().argmax()
    assert len(prediction.candidates(1)[0]) == CONFIG["vocab_size"]


def test_forks_rewinding_and_states(both):
    for decoder in both:
        decoder.forward(IDS[:1, :20])
    expected, decoder = both
    fork = decoder.fork()
    fork.forward(IDS[1:, :9])
    state = decoder.state()
    decoder.rewind(11)
    expected.rewind(11)
    assert np.array_equal(decoder.forward(IDS[:1, 11:14]), expected.forward(IDS[:1, 11:14]))
    fork.restore(state, 20)
    decoder.rewind(0)
    decoder.forward(IDS[:1, :20])
    assert np.array_equal(fork.forward(IDS[:1, 20:23]), decoder.forward(IDS[:1, 20:23]))
    with pytest.raises(DogeExportError):
        fork.restore({**state, "more": IDS}, 20)


def test_the_best_token_of_each_row():
    find = BestToken(["CPUExecutionProvider"])
    tokens, best = find(values([[[1, 3, 3]], [[-5, -np.inf, -7]]]))
    assert tokens.tolist() == [1, 0] and best.tolist() == [3, -5]
    _, best = find(values([[[1, np.nan, 3]], [[np.inf, 0, 0]]]))
    assert not np.isfinite(best).any()


def test_logits_that_are_not_finite_are_refused(both):
    _, decoder = both
    decoder.forward(IDS[:1, :5])
    (prediction,) = decoder.predict(IDS[:1, 5:6])
    decoder._step_value.update_inplace(np.full((1, 1, CONFIG["vocab_size"]), np.nan, np.float32))
    with pytest.raises(RunFailed, match="not finite"):
        prediction.argmax()


def test_what_cannot_run_on_a_gpu_is_refused(folder, exported, task_export):
    with pytest.raises(DogeExportError, match="expected cpu, cuda, or cuda:N"):
        load(folder, device="tpu")
    with pytest.raises(DogeExportError, match=r"has no fp16 graph.*quantize"):
        load(folder, device="cuda")
    with pytest.raises(DogeExportError, match="not fp32: onnxruntime's GroupQueryAttention takes 16-bit floats alone"):
        load(folder, device="cuda:1", precision="fp32")
    for keywords in ({"backend": "native"}, {"providers": "CPUExecutionProvider"}):
        with pytest.raises(DogeExportError, match="leave backend native and execution providers out"):
            load(folder, device="cuda", **keywords)
    with pytest.raises(DogeExportError, match="is for feature-extraction"):
        load(task_export("feature-extraction").folder, device="cuda")
    manifest = read_manifest(folder)
    half = dataclasses.replace(manifest.graphs[MODEL], precision="fp16")
    for interface, told in (("growing", "interface growing: export again"), ("engine", "an engine, which runs on")):
        graph = dataclasses.replace(half, interface=interface, precision="fp16" if interface == "growing" else "fp32")
        with pytest.raises(DogeExportError, match=told):
            check_runs_on_cuda(folder, dataclasses.replace(manifest, graphs={MODEL: graph}), None)
    assert check_runs_on_cuda(folder, dataclasses.replace(manifest, graphs={MODEL: half}), None) == "fp16"
    assert load(folder, device="cpu", threads=1).generate([1, 5], max_new_tokens=2).token_ids


def test_a_gpu_that_cannot_be_used_is_no_cpu(folder, monkeypatch):
    with pytest.raises(DogeExportError, match=r"no CUDAExecutionProvider \(it has .*brings CUDA"):
        open_graph_on_cuda(folder, MODEL, ("cuda", 0))
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, providers: opened(*args))
    with pytest.raises(DogeExportError, match="cannot use cuda:0: no such GPU"):
        open_graph_on_cuda(folder, MODEL, ("cuda", 0))
