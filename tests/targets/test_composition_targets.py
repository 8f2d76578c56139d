"""Every composition, traced and lowered for every target, against the module it was traced from."""

from __future__ import annotations

import functools

import pytest
from composition_runs import CASES, DECODERS, LENGTH, VOCABULARY, run, traits
from compositions import MIXING, traced, traced_once
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_logits
from one_thread import open_session

from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.targets import TARGETS, lower


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    """The name of a composition and a decoder over its graph."""
    name, target = request.param
    model = traced(name)[1]
    lower(model, TARGETS[target], traits(name))
    return name, DECODERS[target](open_session(model), SequenceLimits(32, 32, name in MIXING))


@functools.cache
def expected(name, chunks, *padding):
    """Logits of the module for a row, or for one with each of these numbers of padding tokens."""
    ids = distinct_ids(max(1, len(padding)), LENGTH, VOCABULARY)
    return module_logits(traced_once(name)[0], ids, left_padded(LENGTH, *padding) if padding else None, chunks)


@pytest.mark.parametrize("chunks", [(LENGTH,), (9, 6, 1, 8), (10, *[1] * 14), (1,) * LENGTH], ids=str)
def test_one_row(case, chunks):
    name, decoder = case
    found = run(decoder, distinct_ids(1, LENGTH, VOCABULARY), chunks=chunks)
    assert_equal_to_rounding(found, expected(name, chunks), ONNXRUNTIME)


@pytest.mark.parametrize("chunks", [(LENGTH,), (20, 1, 1, 1, 1)], ids=str)
def test_padded_rows(case, chunks):
    name, decoder = case
    ids, mask = distinct_ids(3, LENGTH, VOCABULARY), left_padded(LENGTH, 0, 5, 17)
    found = run(decoder, ids, mask, chunks)
    assert_equal_to_rounding(found[mask == 1], expected(name, chunks, 0, 5, 17)[mask == 1], ONNXRUNTIME)
