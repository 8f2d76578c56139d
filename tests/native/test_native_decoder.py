"""The native decoder where something goes wrong: memory that ends, wrong masks, interrupted runs, forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doge_runs import assert_equal_to_rounding, distinct_ids, left_padded

import doge_export
from doge_export.errors import RunFailed
from doge_export.package.manifest import read_manifest
from doge_export.runtime.decoders import native
from doge_export.runtime.loading import open_decoder
from doge_export.runtime.native.interface import NativeModel, NativeState

IDS = distinct_ids(3, 12)


@pytest.fixture
def decoder(exported, native_library):
    folder = exported()
    return open_decoder(folder, read_manifest(folder), threads=1, backend="native")


def test_one_mask_for_all_rows_is_a_mask_for_each(decoder):
    """C reads a mask of every row, wherever the array ends."""
    mask = left_padded(12, 4, 4, 4)
    decoder.reset(3)
    expected = decoder.forward(IDS, mask)
    decoder.reset(3)
    np.testing.assert_array_equal(decoder.forward(IDS, mask[:1].copy()), expected)


def test_memory_that_ends_in_a_reset_leaves_no_short_array(decoder, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(native.np, "empty", fail)
        with pytest.raises(MemoryError):
            decoder.reset(3)
    decoder.reset(3)
    assert len(decoder._logits) == 3
    assert [each.logits().shape for each in decoder.predict(IDS)] == [(decoder.vocab_size,)] * 3


def test_a_second_reading_that_fails_leaves_a_whole_sequence(decoder, monkeypatch):
    decoder.predict(IDS[:1, :5])
    (best,) = decoder.predict(IDS[:1, 5:6])

    def fail(*_):
        raise RunFailed("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(NativeState, "run", fail)
        with pytest.raises(RunFailed):
            best.logits()
    assert decoder.length == 5
    found = decoder.forward(IDS[:1, 5:])
    decoder.reset()
    assert_equal_to_rounding(found, decoder.forward(IDS[:1])[:, 5:])


def test_a_prediction_ends_with_the_next_run_of_the_same_length(decoder):
    (first,) = decoder.predict(IDS[:1, :5])
    decoder.rewind(4)
    decoder.predict(IDS[:1, 6:7])
    with pytest.raises(RuntimeError, match="has run again"):
        first.logits()


def test_without_memory_for_the_screened_head_every_logit_is_computed(decoder, monkeypatch):
    def fail(_):
        raise RunFailed("there is not enough memory")

    monkeypatch.setattr(NativeModel, "screen", fail)
    monkeypatch.setattr(decoder, "_steps_to_screen", 1)
    (best,) = decoder.predict(IDS[:1])
    assert best.argmax() == int(best.logits().argmax())


FORKED = """
import os, signal, sys
from doge_export import load
session = load(sys.argv[1], threads=2, backend="native")
answer = session.generate("One day", max_new_tokens=6).text
stream = session.fork().stream("One day", max_new_tokens=6)
next(stream)
child = os.fork()
if child == 0:
    signal.alarm(30)  # threads that are not there are waited for without end
    assert session.generate("One day", max_new_tokens=6).text == answer
    try:
        list(stream)
    except Exception as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("an answer goes on without its cache")
    del session, stream
    os._exit(0)  # as multiprocessing ends it; the exit functions of onnxruntime itself wait without end here
assert os.waitpid(child, 0)[1] == 0
assert session.generate("One day", max_new_tokens=6).text == answer
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("cache", ["unbounded", "bounded"])
def test_a_forked_process_answers_too(nano_folder, native_library, cache, tmp_path):
    folder = nano_folder
    if cache == "bounded":
        folder = tmp_path / "out"
        doge_export.export("doge-nano", folder, cache=cache, max_length="unlimited", validate=False)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, folder],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
