"""Folders with a bounded cache in the native decoder: no key that counts is dropped; going back is exact or refused."""

from __future__ import annotations

import numpy as np
import pytest
from random_doge import MOE

import doge_export
from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.native_bounded import BoundedNativeDecoder
from doge_export.runtime.native.interface import NativeState

WINDOW, ROOM = 20, 512
"""Keys that the model keeps, and those that the decoder holds beyond them for a while."""


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def folders(request, checkpoint, tmp_path_factory):
    """A random model with a bounded cache, and with an unbounded one of 1,500 tokens."""
    made = tmp_path_factory.mktemp("bounded")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # of any length, in any pieces
    model = checkpoint(**rope, **(MOE if request.param else {}))
    options = {"validate": False, "cdmoe_routing": "per-token" if request.param else "reference"}
    doge_export.export(model, made / "bounded", cache="bounded", max_length="unlimited", **options)
    doge_export.export(model, made / "unbounded", max_length=1500, **options)
    return made / "bounded", made / "unbounded"


@pytest.fixture
def sessions(folders, native_library):
    return [doge_export.load(folder, threads=2, backend="native") for folder in folders]


def ids_of(length, rows=1, seed=0):
    return np.random.default_rng(seed).integers(3, 320, (rows, length))


def assert_close(found, expected):
    """Up to 2.3e-5 with AVX2: attention adds page by page, and the pages of slots hold other keys than those of all."""
    assert np.abs(found - expected).max() <= 3e-5 * expected.std()


@pytest.mark.parametrize("chunks", [[1300], [700, 1, 1, 500, *[1] * 98], [7] * 185 + [5]], ids=["1", "2", "3"])
def test_logits_stay_equal(sessions, chunks):
    ids, mask = ids_of(1300, 2), np.ones((2, 1300), np.int64)
    mask[1, :40] = 0
    found, expected = (session.logits(ids, mask, chunks=chunks) for session in sessions)
    assert_close(found[0], expected[0])
    assert_close(found[1, 40:], expected[1, 40:])
    decoder = sessions[0].decoder
    assert isinstance(decoder, BoundedNativeDecoder) and decoder.length == 1300
    assert WINDOW <= decoder.slots <= WINDOW + ROOM
    assert decoder.cache_snapshot()[0][0].shape == (2, 2, decoder.slots, 16)


def test_memory_stays(sessions):
    decoder, ids = sessions[0].decoder, ids_of(6000)
    sessions[0].reset()
    bytes_at = []
    for start in range(0, 6000, 200):
        decoder.predict(ids[:, start : start + 200])
        bytes_at.append(decoder._present_state().bytes)
    # A page of 256 slots holds the window and the piece that is read: of 3 layers and 2 heads keys, values and scores.
    assert set(bytes_at) == {3 * 2 * 256 * 4 * (2 * 16 + 1)}


def test_goes_back_where_no_key_was_dropped_and_to_marks(sessions):
    decoder, ids = sessions[0].decoder, ids_of(1100)
    expected = sessions[1].logits(ids, chunks=[400, 500, 200])
    for length in (900, 400, 30):
        sessions[0].reset()
        decoder.forward(ids[:, :400])
        assert decoder.recallable(17) == 17
        decoder.mark()
        decoder.forward(ids[:, 400:900])
        decoder.mark()
        decoder.forward(ids[:, 900:])
        asked = (1100, 1099, 900, 899, 400, 30)
        assert [decoder.recallable(length) for length in asked] == [1100, 900, 900, 400, 400, 30]
        with pytest.raises(DogeExportError, match="cannot be set back from 1100 to 950 tokens"):
            decoder.rewind(950)
        decoder.rewind(length)
        assert decoder.length == length
        if length == 30:
            decoder.forward(ids[:, 30:400])
        if length < 900:
            decoder.forward(ids[:, 400:900])
        assert_close(decoder.forward(ids[:, 900:]), expected[:, 900:])


def test_an_interrupted_run_is_gone_back_from_or_refused(sessions, monkeypatch, tmp_path):
    """Between the caches and the record: the run has ended in C, and Python has not counted its tokens."""
    session, ids = sessions[0], ids_of(1000)[0].tolist()
    decoder, run = session.decoder, NativeState.run
    settings = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": -1}
    expected = session.generate(ids[:900], **settings).token_ids

    def interrupted(state, call):
        run(state, call)
        if state.length > 900:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NativeState, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.generate(ids[:900], **settings)
    assert decoder.length == 900 and decoder.recallable(900) == 900  # by the mark at the prompt's end
    with pytest.raises(DogeExportError, match="was cut off"):
        session.save(tmp_path / "state")
    decoder._marks.clear()
    assert decoder.recallable(900) == 0
    with pytest.raises(DogeExportError, match="was cut off"):
        decoder.predict(np.array([[5]]))
    assert session.generate(ids[:900], **settings).token_ids == expected


def test_forks_read_together(sessions):
    decoder, ids = sessions[0].decoder, ids_of(800, 2)
    forks = [decoder.fork(), decoder.fork()]
    alone = []
    for fork, row, length in zip(forks, ids, (790, 20), strict=True):
        fork.predict(row[None, :length])
        alone.append(fork.predict(row[None, length : length + 1])[0].logits().copy())
        fork.reset()
        fork.predict(row[None, :length])
    assert decoder.reads_together
    rows = [ids[0][None, 790:791], ids[1][None, 20:21]]
    for found, expected in zip(decoder.predict_together(forks, rows), alone, strict=True):
        np.testing.assert_array_equal(found.logits(), expected)
    assert [fork.length for fork in forks] == [791, 21]


def test_a_state_is_small_and_goes_on(sessions, folders, tmp_path):
    session, sizes = sessions[0], []
    for length in (700, 1400, 3000):
        session.generate(ids_of(length)[0].tolist(), max_new_tokens=3, eos_token_id=-1)
        session.save(tmp_path / "state")
        sizes.append((tmp_path / "state").stat().st_size)
    assert max(sizes) <= 3 * 2 * (WINDOW + ROOM) * 4 * (2 * 16 + 1) + 4 * 3000 + 9000  # layers, heads; ids; names
    other = doge_export.load(folders[0], threads=2, backend="native")
    assert other.load_state(tmp_path / "state")[:3000] == ids_of(3000)[0].tolist()
    assert other.decoder.length == session.decoder.length == 3002
    token = np.array([[7]])
    for _ in range(200):
        found, expected = (each.decoder.predict(token)[0].logits() for each in (other, session))
        np.testing.assert_array_equal(found, expected)
        token = np.array([[int(found.argmax())]])
