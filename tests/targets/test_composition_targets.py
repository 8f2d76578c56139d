"""Every composition, traced and lowered for every target, against the module it was traced from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from compositions import BLINDING, COMPOSITIONS, MIXING, random_module
from doge_runs import ONNXRUNTIME, assert_equal_to_rounding, distinct_ids, left_padded, module_logits

from doge_export.graph import trace
from doge_export.runtime.canonical_decoder import CanonicalDecoder
from doge_export.runtime.decoder import Limits
from doge_export.runtime.in_place_decoder import InPlaceDecoder
from doge_export.runtime.portable_decoder import PortableDecoder
from doge_export.targets import TARGETS, Traits, lower

LENGTH, VOCABULARY = 24, 96
DECODERS = {"onnxruntime": InPlaceDecoder, "portable": PortableDecoder, "canonical": CanonicalDecoder}
EVERY = COMPOSITIONS | BLINDING | MIXING
CASES = [(name, target) for name in EVERY for target in DECODERS if target != "canonical" or name not in BLINDING]


def _traits(name):
    """The kernel rotates every second composition, tables of angles rotate the others."""
    static = list(EVERY).index(name) % 2 == 0 and EVERY[name].get("rotates_keys", True)
    return Traits(whole_rows=name in BLINDING | MIXING, static_rope=static, max_length=32)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    """A module and a decoder over its graph."""
    name, target = request.param
    module = random_module(EVERY[name])
    model = trace(module)
    lower(model, TARGETS[target], _traits(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return module, DECODERS[target](session, Limits(32, 32, name in MIXING))


def run(decoder, ids, mask=None, chunks=None):
    """Logits [B, S, V] read in pieces."""
    decoder.reset(len(ids))
    parts, start = [], 0
    for size in chunks or [ids.shape[1]]:
        piece = slice(start, start + size)
        parts.append(decoder.forward(ids[:, piece], None if mask is None else mask[:, piece]))
        start += size
    return np.concatenate(parts, axis=1)


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
