"""Every composition, traced and lowered for every target, against the module it was traced from."""

from __future__ import annotations

import pytest
from composition_runs import CASES, DECODERS, LENGTH, VOCABULARY, run, traits
from compositions import MIXING, traced
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_logits
from one_thread import open_session

from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.targets import TARGETS, lower


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    """A module and a decoder over its graph."""
    name, target = request.param
    module, model = traced(name)
    lower(model, TARGETS[target], traits(name))
    return module, DECODERS[target](open_session(model), SequenceLimits(32, 32, name in MIXING))


@pytest.mark.parametrize("chunks", [[LENGTH], [9, 6, 1, 8], [10, *[1] * 14], [1] * LENGTH], ids=str)
def test_one_row(case, chunks):
    module, decoder = case
    ids = distinct_ids(1, LENGTH, VOCABULARY)
    assert_equal_to_rounding(run(decoder, ids, chunks=chunks), module_logits(module, ids, chunks=chunks), ONNXRUNTIME)


@pytest.mark.parametrize("chunks", [[LENGTH], [20, 1, 1, 1, 1]], ids=str)
def test_padded_rows(case, chunks):
    module, decoder = case
    ids, mask = distinct_ids(3, LENGTH, VOCABULARY), left_padded(LENGTH, 0, 5, 17)
    found, expected = run(decoder, ids, mask, chunks), module_logits(module, ids, mask, chunks)
    assert_equal_to_rounding(found[mask == 1], expected[mask == 1], ONNXRUNTIME)
