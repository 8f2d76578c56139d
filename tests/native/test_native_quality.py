"""Fewer bits cost the native decoder no more than the folder's graph, whose codes and scales it computes with."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from doge_export import quantize
from doge_export.numerics import kl_divergence, log_softmax
from doge_export.quantization.texts import texts_for
from doge_export.runtime.loading import load


def divergence(folder, precision, backend, texts, expected):
    """Mean KL divergence of the next token from the float32 graph, in nats."""
    decoder = load(folder, precision=precision, backend=backend, threads=1).decoder
    found = []
    for row, logits in zip(texts.rows, expected, strict=True):
        decoder.reset()
        found.append(kl_divergence(logits, log_softmax(decoder.forward(row[None])[0])))
    return float(np.mean(np.concatenate(found)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["doge-nano", "doge-nano-moe"])
def test_quality_is_no_worse_than_the_graphs(name, bundled_folder, native_library, tmp_path):
    folder = shutil.copytree(bundled_folder(name), tmp_path / "out")
    quantize(folder, ["int8", "int4"], max_kl=1.0)
    exact = load(folder, precision="fp32", backend="graph", threads=1)
    texts = texts_for("evaluation", exact).joined(exact.max_length)
    expected = []
    for row in texts.rows:
        exact.decoder.reset()
        expected.append(log_softmax(exact.decoder.forward(row[None])[0]))
    for precision in ("int8", "int4"):
        graph, native = (divergence(folder, precision, by, texts, expected) for by in ("graph", "native"))
        print(f"{name} {precision}: KL of the graph {graph:.5f}, of the native decoder {native:.5f}")  # noqa: T201
        assert native <= 1.1 * graph + 1e-4
