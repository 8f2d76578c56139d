"""Bounded caches against transformers' eager attention, at twice and four times keep_window_size.

The bar is that of a validation's check beyond keep_window_size. Transformers routes a mixture of experts per token
where it is fed token by token.
"""

from __future__ import annotations

import numpy as np
import pytest
from random_doge import MOE

import doge_export
from doge_export.checkpoint import open_checkpoint
from doge_export.validation.ambiguity import TIE
from doge_export.validation.tolerance import LOGITS_TOLERANCE
from doge_export.validation.transformers_oracle import TransformersOracle

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
BACKENDS = [("portable", "graph"), ("onnxruntime", "graph"), ("onnxruntime", "native")]


def distinct(length, vocab_size, seed=0):
    return np.random.default_rng(seed).permutation(vocab_size)[None, :length]


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def model(request, checkpoint, tmp_path_factory):
    """A random model of 20 keys, its bounded folders, and transformers' logits with their gaps.

    200 tokens, since the native decoder holds 64 keys beyond the window until it drops some.
    """
    made, folder = tmp_path_factory.mktemp("bounded"), checkpoint(**ROPE, **(MOE if request.param else {}))
    routing = "per-token" if request.param else "reference"
    for target in ("portable", "onnxruntime"):
        options = {"cache": "bounded", "max_length": "unlimited", "cdmoe_routing": routing, "validate": False}
        doge_export.export(folder, made / target, target=target, **options)
    oracle = TransformersOracle(open_checkpoint(folder), routing)
    ids = distinct(200, 320)
    return made, ids, oracle.run(ids, np.ones_like(ids), (200,))


@pytest.mark.parametrize(("target", "backend"), BACKENDS)
@pytest.mark.parametrize("chunks", [(200,), (33, *[1] * 167), (7,) * 28 + (4,)], ids=["whole", "steps", "7"])
def test_two_and_four_windows(model, native_library, target, backend, chunks):
    made, ids, reference = model
    session = doge_export.load(made / target, threads=1, backend=backend)
    found = session.logits(ids, chunks=list(chunks))
    clear = reference.gaps >= TIE
    assert clear[:, :80].all()  # nothing is left out at two and four windows
    assert np.abs(found - reference.logits)[clear].max() <= LOGITS_TOLERANCE * reference.logits.std()
    assert session.decoder.slots < 200 or chunks == (200,)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "backend"), BACKENDS)
def test_four_windows_of_2048(checkpoint, native_library, tmp_path, target, backend):
    """One layer, so that a tie is felt at its own position alone; one prompt in pieces of 512."""
    window, vocabulary = 2048, 8500
    folder = checkpoint(
        num_hidden_layers=1, vocab_size=vocabulary, keep_window_size=window, max_position_embeddings=4 * window, **ROPE
    )
    doge_export.export(folder, tmp_path / "out", target=target, cache="bounded", max_length="unlimited", validate=False)
    oracle = TransformersOracle(open_checkpoint(folder))
    ids = distinct(4 * window, vocabulary)
    mask, chunks = np.ones_like(ids), (512,) * (4 * window // 512)
    gaps = []
    selection = oracle._selection_gaps
    oracle._selection_gaps = lambda *given: (gaps.append(selection(*given)), gaps[0])[1]  # before they are spread
    reference = oracle.run(ids, mask, chunks)
    clear = gaps[0][0] >= TIE
    assert clear[:window].all() and clear.mean() > 0.95
    found = doge_export.load(tmp_path / "out", threads=2, backend=backend).logits(ids, chunks=list(chunks))
    difference = np.abs(found - reference.logits)[0].max(-1) / reference.logits.std()
    for end in (2 * window, 4 * window):
        here = slice(end - window, end)
        assert difference[here][clear[here]].max() <= LOGITS_TOLERANCE
