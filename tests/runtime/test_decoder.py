"""The decoders of all targets over exported folders, against our module fed the same pieces."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from doge_runs import (
    ONNXRUNTIME,
    assert_equal_to_rounding,
    distinct_ids,
    left_padded,
    module_logits,
    module_of,
    transformers_logits,
)
from random_doge import CONFIG, MAX_LENGTH, MOE, random_model

from doge_export.errors import DogeExportError
from doge_export.package.manifest import MODEL, read_manifest
from doge_export.runtime.loading import open_decoder

VOCAB, TRAINED = CONFIG["vocab_size"], CONFIG["max_position_embeddings"]
TARGETS = ["onnxruntime", "portable", "canonical", "native"]
"""The native decoder runs graphs of target onnxruntime."""
CHUNKS = {
    "whole": [60],
    "steps": [30, *[1] * 30],
    "from-one": [1, 1, 7, 1, 1],
    "pieces": [13, 2, 9, 1, 1, 6, 1, 15],
    "far-pieces": [13, 2, 9, 1, 1, 6, 1, 20],
}
PIECES = {name: chunks for name, chunks in CHUNKS.items() if name != "far-pieces"}
"""Where no batch is read in pieces beyond the trained length."""


@pytest.fixture(params=TARGETS)
def target(request):
    if request.param == "native":
        request.getfixturevalue("native_library")
    return request.param


@pytest.fixture
def opened(exported, target):
    """Open an export of a configuration with the decoder of the target."""

    def decoder(**changes):
        is_native = target == "native"
        folder = exported(target="onnxruntime" if is_native else target, **changes)
        return open_decoder(folder, read_manifest(folder), threads=1, backend="native" if is_native else "graph")

    return decoder


@pytest.fixture
def dense(opened):
    return opened()


@functools.cache
def models(moe=False, routing="reference"):
    """transformers' model and our module of what `exported` exports."""
    model = random_model(num_hidden_layers=2, **(MOE if moe else {}))
    return model, module_of(model, cdmoe_routing=routing, max_length=MAX_LENGTH)


@pytest.fixture
def module():
    return models()[1]


@functools.cache
def expected(of, batch, chunks, padding=None, **kind):
    """Logits of "transformers" or of our "module", which are the same whatever the target."""
    model, module = models(**kind)
    ids = distinct_ids(batch, sum(chunks))
    mask = None if padding is None else left_padded(sum(chunks), *padding)
    if of == "transformers":
        logits = transformers_logits(model, ids, mask, chunks)
    else:
        logits = module_logits(module, ids, mask, chunks)
    logits.setflags(write=False)
    return logits


def feed(decoder, ids, mask=None, chunks=None):
    """Logits [B, S, V] of a fresh sequence, checked to be as many as asked for."""
    decoder.reset(len(ids))
    logits, start = [], 0
    for size in chunks or [ids.shape[1]]:
        part = slice(start, start + size)
        piece = decoder.forward(ids[:, part], None if mask is None else mask[:, part])
        assert piece.shape == (len(ids), size, decoder.vocab_size) and piece.dtype == np.float32
        logits.append(piece)
        start += size
        assert decoder.length == start and decoder.batch_size == len(ids)
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_dense(dense, batch, chunks):
    """Across the window and the trained length; behind a past a batch goes row by row where the target needs it."""
    found = feed(dense, distinct_ids(batch, sum(chunks)), chunks=chunks)
    for of in ("module", "transformers"):
        assert_equal_to_rounding(found, expected(of, batch, tuple(chunks)), ONNXRUNTIME)


@pytest.mark.parametrize("chunks", PIECES.values(), ids=PIECES)
def test_left_padded_batch(dense, chunks):
    length = sum(chunks)
    ids, mask = distinct_ids(3, length), left_padded(length, 0, 2, 8)
    found = feed(dense, ids, mask, chunks)
    assert_equal_to_rounding(found[mask == 1], expected("module", 3, tuple(chunks), (0, 2, 8))[mask == 1], ONNXRUNTIME)


@pytest.mark.parametrize("chunks", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize(("batch", "routing"), [(1, "reference"), (1, "per-token"), (3, "per-token")])
def test_mixture_of_experts(opened, batch, routing, chunks):
    decoder = opened(moe=True, cdmoe_routing=routing)
    length, padding = sum(chunks), range(0, 4 * batch, 4)
    ids, mask = distinct_ids(batch, length), left_padded(length, *padding)
    found = feed(decoder, ids, mask, chunks)
    right = expected("module", batch, tuple(chunks), padding, moe=True, routing=routing)
    assert_equal_to_rounding(found[mask == 1], right[mask == 1], ONNXRUNTIME)


def test_reference_routing_of_a_batch(opened):
    """Read whole, then token by token, rows route one another as in transformers."""
    decoder = opened(moe=True)
    ids, mask, chunks = distinct_ids(3, 40), left_padded(40, 0, 3, 7), (25, *[1] * 15)
    found = feed(decoder, ids, mask, chunks)
    right = expected("transformers", 3, chunks, (0, 3, 7), moe=True)
    assert_equal_to_rounding(found[mask == 1], right[mask == 1], ONNXRUNTIME)


def test_reference_routing_of_a_batch_in_pieces(opened, target):
    """Rows that mix cannot be run one by one: the in-place target refuses, the others have no need to."""
    decoder = opened(moe=True)
    ids, chunks = distinct_ids(2, 20), (12, 8)
    if target != "onnxruntime":
        right = expected("transformers", 2, chunks, moe=True)
        assert_equal_to_rounding(feed(decoder, ids, chunks=chunks), right, ONNXRUNTIME)
        return
    with pytest.raises(DogeExportError, match="per-token"):
        feed(decoder, ids, chunks=chunks)
    assert decoder.length == 12
    whole = feed(decoder, ids)  # and is as good as before
    assert_equal_to_rounding(whole, expected("transformers", 2, (20,), moe=True), ONNXRUNTIME)


def test_rows_of_different_lengths_in_pieces_beyond_the_trained_length(dense, module, target):
    """Dynamic NTK turns all rows by the longest, so the in-place target, which reads pieces row by row, refuses."""
    ids, mask, chunks = distinct_ids(2, TRAINED + 6), left_padded(TRAINED + 6, 0, 5), [TRAINED - 4, 10]
    if target != "onnxruntime":
        found = feed(dense, ids, mask, chunks)
        assert_equal_to_rounding(found[mask == 1], module_logits(module, ids, mask, chunks)[mask == 1], ONNXRUNTIME)
        return
    with pytest.raises(DogeExportError, match=f"beyond the trained length of {TRAINED} tokens"):
        feed(dense, ids, mask, chunks)
    assert dense.length == TRAINED - 4
    steps = [dense.forward(ids[:, at : at + 1]) for at in range(TRAINED - 4, TRAINED + 6)]
    expected = module_logits(module, ids, mask, [TRAINED - 4, *[1] * 10])[:, TRAINED - 4 :]
    assert_equal_to_rounding(np.concatenate(steps, axis=1), expected, ONNXRUNTIME)


def test_rows_of_different_lengths_in_pieces_where_tokens_may_see_no_key(tmp_path):
    """Such a generation is read whole, as `chunkable_length` 0 says; steps of one token go on from there."""
    from doge_export import export

    golden = Path(__file__).parents[1] / "golden" / "g4b-additive-ratio"
    folder = export(golden, tmp_path / "out", max_length=32, validate=False).folder
    decoder = open_decoder(folder, read_manifest(folder), threads=1)
    assert decoder.chunkable_length == 0
    decoder.reset(2)
    ids, mask = distinct_ids(2, 12, 160), left_padded(12, 0, 3)
    decoder.forward(ids[:, :8], mask[:, :8])
    with pytest.raises(DogeExportError, match="in pieces in this generation, where a token may see no key"):
        decoder.forward(ids[:, 8:], mask[:, 8:])
    assert decoder.length == 8
    assert decoder.forward(ids[:, 8:9]).shape == (2, 1, 160)


@pytest.mark.parametrize("batch", [1, 2])
def test_num_logits_to_keep(dense, batch):
    ids = distinct_ids(batch, 20)
    every = feed(dense, ids, chunks=[12, 7, 1])
    for keep in (1, 3, 7):
        dense.reset(batch)
        kept = [
            dense.forward(ids[:, :12], None, keep),
            dense.forward(ids[:, 12:19], None, keep),
            dense.forward(ids[:, 19:], None, keep),
        ]
        for logits, last in zip(kept, (12, 19, 20), strict=True):
            size = min(keep, 1) if last == 20 else keep
            assert_equal_to_rounding(logits, every[:, last - size : last])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [0, 1, 15, 29, 30])
def test_rewind_then_continue_equals_fresh(dense, batch, length):
    ids, other = distinct_ids(batch, 30), distinct_ids(batch, 12, seed=1)
    mask = left_padded(30, *range(0, 3 * batch, 3))
    feed(dense, ids, mask, [22, *[1] * 8])
    dense.rewind(length)
    assert dense.length == length
    after = [dense.forward(other[:, :9]), dense.forward(other[:, 9:10]), dense.forward(other[:, 10:])]
    joined = np.concatenate([ids[:, :length], other], axis=1)
    joined_mask = np.concatenate([mask[:, :length], np.ones_like(other)], axis=1)
    fresh = feed(dense, joined, joined_mask, ([length] if length else []) + [9, 1, 2])
    assert_equal_to_rounding(np.concatenate(after, axis=1), fresh[:, length:])


def test_rewind_forwards_is_a_bug(dense):
    feed(dense, distinct_ids(1, 5))
    for length in (6, -1):
        with pytest.raises(ValueError, match="cannot rewind"):
            dense.rewind(length)
    assert dense.length == 5


def test_reset_forgets_and_takes_another_batch_size(dense):
    ids = distinct_ids(3, 25)
    first = feed(dense, ids[:1], chunks=[20, 1, 4])
    feed(dense, ids, chunks=[20, 1, 4])
    feed(dense, ids[1:], chunks=[20, 1, 4])
    np.testing.assert_array_equal(feed(dense, ids[:1], chunks=[20, 1, 4]), first)


def test_a_batch_of_another_size_needs_a_reset(dense):
    feed(dense, distinct_ids(2, 5))
    with pytest.raises(ValueError, match="reset"):
        dense.forward(distinct_ids(1, 1))


def test_too_long(dense):
    assert dense.max_length == MAX_LENGTH
    ids = distinct_ids(1, MAX_LENGTH + 1)
    with pytest.raises(DogeExportError, match=f"{MAX_LENGTH + 1} tokens are more than .*{MAX_LENGTH}.*--max-length"):
        feed(dense, ids)
    last = feed(dense, ids[:, 1:], chunks=[MAX_LENGTH - 1, 1])[:, -1:]
    with pytest.raises(DogeExportError, match="--max-length"):
        dense.forward(ids[:, :1])
    dense.rewind(MAX_LENGTH - 1)
    np.testing.assert_array_equal(dense.forward(ids[:, -1:]), last)


@pytest.mark.parametrize("wrong", [-1, VOCAB, 2**40])
@pytest.mark.parametrize("length", [1, 4])
def test_an_id_out_of_range(dense, wrong, length):
    """Refused before anything is written: the sequence goes on as if it had not been asked."""
    ids = distinct_ids(1, 10)
    expected = feed(dense, ids, chunks=[6, 4])[:, 6:]
    feed(dense, ids[:, :6])
    bad = ids[:, 6 : 6 + length].copy()
    bad[0, -1] = wrong
    with pytest.raises(DogeExportError, match=f"token id {wrong} is out of range: this model has ids 0 to {VOCAB - 1}"):
        dense.forward(bad)
    np.testing.assert_array_equal(dense.forward(ids[:, 6:]), expected)


@pytest.mark.parametrize("size", [1, 4])
def test_logits_are_the_callers_own(dense, size):
    dense.reset()
    ids = distinct_ids(1, 6 * size)
    pieces = [dense.forward(ids[:, start : start + size]) for start in range(0, 6 * size, size)]
    copies = [piece.copy() for piece in pieces[:-1]]
    dense.forward(ids[:, :size])
    for piece, copy in zip(pieces[:-1], copies, strict=True):
        np.testing.assert_array_equal(piece, copy)
    assert len({piece.tobytes() for piece in pieces}) == 6
    pieces[-1][...] = 0  # and writing to them harms nobody
    assert dense.forward(ids[:, :size]).any()


def test_cache_snapshot(dense, module):
    """Keys and values of every layer, [B, Hkv, length, D], and copies."""
    ids = distinct_ids(2, 30)
    feed(dense, ids, chunks=[20, *[1] * 10])
    snapshot = dense.cache_snapshot()
    assert [[part.shape for part in parts] for parts in snapshot] == [[(2, 2, 30, 16)] * 2] * 2
    import torch

    positions = torch.arange(30).expand(2, -1)
    with torch.no_grad():
        _, cache = module(torch.from_numpy(ids), torch.ones(2, 30, dtype=torch.int64), positions)
    for parts, rights in zip(snapshot, cache, strict=True):
        for part, right in zip(parts, rights[:2], strict=True):
            assert_equal_to_rounding(part, right.numpy(), ONNXRUNTIME)
    copies = [part.copy() for parts in snapshot for part in parts]
    dense.reset(2)
    dense.forward(ids[:, ::-1].copy())
    for part, copy in zip([part for parts in snapshot for part in parts], copies, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_columns_of_a_larger_array_are_fine(dense):
    """Ids and masks need not be contiguous."""
    ids, mask = distinct_ids(2, 20), left_padded(20, 0, 6)
    expected = feed(dense, ids, mask)
    np.testing.assert_array_equal(feed(dense, np.asfortranarray(ids), np.asfortranarray(mask)), expected)


def test_unknown_interface(exported):
    folder = exported()
    manifest = read_manifest(folder)
    entry = dataclasses.replace(manifest.graphs[MODEL], interface="abacus")
    with pytest.raises(
        DogeExportError, match=r"of interface 'abacus'.*growing, growing-scores, bounded, engine, native"
    ):
        open_decoder(folder, manifest.with_graph(MODEL, entry))


def test_missing_and_damaged_graph(exported, tmp_path):
    manifest = read_manifest(exported())
    with pytest.raises(DogeExportError, match=r"has no onnx/model.onnx"):
        open_decoder(tmp_path, manifest)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(DogeExportError, match="is damaged"):
        open_decoder(tmp_path, manifest)


@pytest.fixture(params=[target for target in TARGETS if target != "native"])
def damaged(exported, request, tmp_path):
    """Open the graph of a folder with other bytes in its place."""
    folder = shutil.copytree(exported(target=request.param), tmp_path / "damaged")
    manifest = read_manifest(folder)
    file = folder / "onnx" / "model.onnx"
    intact = file.read_bytes()

    def reopen(change):
        file.write_bytes(change(bytearray(intact)))
        return open_decoder(folder, manifest, threads=1, backend="graph")

    reopen(lambda content: content)
    return reopen


@pytest.mark.parametrize("part", [0.0, 1e-5, 1e-3, 0.5, 0.999])
def test_a_truncated_graph_is_one_line(damaged, part):
    with pytest.raises(DogeExportError, match=r"model\.onnx is damaged .*export it again") as caught:
        damaged(lambda content: content[: int(len(content) * part)])
    assert "\n" not in str(caught.value)


def test_flipped_bits_in_the_header_are_one_line(damaged):
    """Or change nothing that a decoder looks at, such as the name of who wrote it."""
    refused = 0
    for index in range(32):
        for bit in (0, 3, 6):

            def flip(content, index=index, bit=bit):
                content[index] ^= 1 << bit
                return content

            try:
                damaged(flip)
            except DogeExportError as error:
                assert "is damaged" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused >= 10  # the keys and lengths among them


def test_unknown_provider(exported):
    folder = exported()
    manifest = read_manifest(folder)
    with pytest.raises(DogeExportError, match=r"has no AbacusExecutionProvider.*CPUExecutionProvider"):
        open_decoder(folder, manifest, providers=["AbacusExecutionProvider"])
