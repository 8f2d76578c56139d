"""Hidden states and classes by the native decoder, against transformers' models and the folder's own graph."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from doge_runs import distinct_ids, left_padded
from random_doge import MAX_LENGTH, MOE
from task_answers import right_padded, theirs
from task_models import VOCAB_SIZE

from doge_export.cli import main
from doge_export.runtime import load
from doge_export.runtime.native import classifier
from doge_export.runtime.one_call import NativeCall

FEATURES, CLASSES = "feature-extraction", "text-classification"


@pytest.fixture
def both(task_export, native_library):
    """transformers' model, and the session by the native decoder, of one export."""

    def opened(task, **changes):
        changes = {"num_labels": 3} | changes if task == CLASSES else changes
        model, _, folder = task_export(task, **changes)
        session = load(folder, threads=1, backend="native")
        assert session.computes_by.startswith("native decoder, ")
        return model, session

    return opened


@pytest.mark.parametrize("padded", [left_padded, right_padded])
@pytest.mark.parametrize("length", [1, 30, MAX_LENGTH])
def test_hidden_states_are_those_of_transformers(both, padded, length):
    """With key selection, and beyond the trained length, where the frequencies change with the length."""
    model, session = both(FEATURES)
    ids = distinct_ids(4, length, VOCAB_SIZE)
    mask = padded(length, 0, *(min(n, length - 1) for n in (3, 17, 29)))
    found = session.hidden_states(ids, mask)[mask == 1]
    assert np.abs(found - theirs(model, ids, mask)[mask == 1]).max() <= 1e-4


@pytest.mark.parametrize("routing", ["reference", "per-token"])
def test_experts(both, routing):
    """As published, the tokens of a call route one another; of the other routing the graph says what is right."""
    model, session = both(FEATURES, **MOE, cdmoe_routing=routing)
    ids, mask = distinct_ids(3, 24, VOCAB_SIZE), right_padded(24, 0, 5, 9)
    graph = load(session.folder, threads=1, backend="graph").hidden_states(ids, mask)
    expected = theirs(model, ids, mask) if routing == "reference" else graph
    assert np.abs(session.hidden_states(ids, mask) - expected)[mask == 1].max() <= 1e-4
    alone = session.hidden_states(ids[2:, :15])[0]
    assert (np.abs(session.hidden_states(ids, mask)[2, :15] - alone).max() > 0.01) == (routing == "reference")


def test_rows_read_in_several_pieces_are_the_same(both, monkeypatch):
    _, session = both(FEATURES)
    ids, mask = distinct_ids(5, 30, VOCAB_SIZE), left_padded(30, 0, 3, 17, 29, 0)
    together = session.hidden_states(ids, mask)
    monkeypatch.setattr("doge_export.runtime.one_call._TOGETHER", 512)
    assert np.array_equal(session.hidden_states(ids, mask)[mask == 1], together[mask == 1])


@pytest.mark.parametrize("changes", [{}, MOE, {"pad_token_id": None}], ids=["dense", "moe", "no padding id"])
def test_class_scores_are_those_of_transformers(both, changes):
    model, session = both(CLASSES, **changes)
    ids, mask = distinct_ids(3, 12, VOCAB_SIZE), right_padded(12, 0, 3, 7)
    pad = model.config.pad_token_id
    if pad is None:  # transformers refuses such a batch
        for row, kept in zip(ids, mask, strict=True):
            alone = theirs(model, row[None, : kept.sum()])
            assert np.abs(session.logits(row, kept) - alone).max() <= 1e-4
        return
    ids[mask == 0] = pad
    assert np.abs(session.logits(ids, mask) - theirs(model, ids, mask)).max() <= 1e-4
    ids[0, -2:] = ids[1, 3] = ids[2] = pad
    assert np.abs(session.logits(ids) - theirs(model, ids)).max() <= 1e-4


def test_a_classifier_that_judges_before_the_first_padding():
    weights = np.eye(2, dtype=np.float32)
    hidden = np.stack([np.arange(8, dtype=np.float32).reshape(4, 2)] * 3)
    ids = np.array([[5, 6, 0, 0], [0, 6, 7, 8], [5, 6, 7, 8]])
    scores = classifier.Classifier(weights, 0, first_pad_pooling=True)(hidden, ids, np.ones_like(ids))
    assert scores.tolist() == [[2, 3], [6, 7], [6, 7]]


def test_threads_share_a_session(both):
    _, session = both(FEATURES)
    rows = [distinct_ids(2, length, VOCAB_SIZE) for length in (5, 20, 40, 60)]
    alone, found = [session.hidden_states(ids) for ids in rows], {}
    threads = [
        threading.Thread(target=lambda n, ids: found.update({n: session.hidden_states(ids)}), args=pair)
        for pair in enumerate(rows)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], expected) for n, expected in enumerate(alone))


def test_commands_use_it_unless_told_otherwise(task_export, native_library):
    folder = task_export(CLASSES, num_labels=3).folder
    assert isinstance(load(folder)._model, NativeCall)

    def answer(*options):
        done = CliRunner().invoke(main, ["classify", str(folder), "a dog", "a cat", "--json", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    native, graph = answer(), answer("--backend", "graph")
    assert [list(each) for each in native] == [list(each) for each in graph]
    assert "native decoder, " in CliRunner().invoke(main, ["inspect", str(folder)]).stdout
