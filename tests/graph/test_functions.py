"""The function body of CDMoE against loops in float64; that of attention is tested beside its lowerings."""

from __future__ import annotations

import naive_operators
import numpy as np
import onnx
import pytest
from one_thread import open_session

from doge_export.graph import functions

TEXT = """
<ir_version: 10, opset_import: ["": 23, "doge": 1]>
agraph ({T}[B, S, 8] hidden, float[B, S, R, K] scores_x, float[B, S, R, K] scores_y, {T}[E, 8] down, {T}[E, 8] up)
=> ({T}[B, S, 8] output) {{
    output = doge.CDMoE <num_experts_per_tok = {picks}> (hidden, scores_x, scores_y, down, up)
}}
"""


def check(picks, batch, tokens, routing_heads, keys, experts, levels=None, dtype=np.float32):
    random = np.random.default_rng(picks)

    def normal(*shape):
        return random.normal(size=shape).astype(dtype)

    hidden = normal(batch, tokens, 8)
    scores = random.normal(size=(2, batch, tokens, routing_heads, keys)).astype(np.float32)
    if levels:
        scores = random.integers(levels, size=scores.shape).astype(np.float32)
    if dtype == np.float16:
        scores = 1 + np.float32(1e-4) * scores  # which float16 would not tell apart
    down, up = normal(2, experts, 8)
    model = onnx.parser.parse_model(TEXT.format(picks=picks, T=np.dtype(dtype).name.removesuffix("32")))
    model.functions.append(functions.CDMoE.to_function_proto())
    onnx.checker.check_model(model)
    session = open_session(model)
    feeds = {"hidden": hidden, "scores_x": scores[0], "scores_y": scores[1], "down": down, "up": up}
    expected = naive_operators.cdmoe(hidden, *scores, down, up, num_experts_per_tok=picks)
    exact = {"rtol": 1e-6, "atol": 1e-5} if dtype == np.float32 else {"rtol": 5e-3, "atol": 5e-3}
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, **exact)


@pytest.mark.parametrize("picks", range(1, 10))
@pytest.mark.parametrize("routing_heads", [1, 3])
def test_any_number_of_pairs(picks, routing_heads):
    check(picks, 2, 5, routing_heads, keys=3, experts=11)


@pytest.mark.parametrize("picks", [1, 3, 4, 8])
def test_the_lower_expert_of_equal_sums(picks):
    check(picks, 2, 6, 2, keys=3, experts=9, levels=2)


@pytest.mark.parametrize(("batch", "tokens", "keys"), [(1, 1, 1), (1, 1, 4), (3, 1, 2), (1, 2, 2)])
def test_small_extents(batch, tokens, keys):
    check(1, batch, tokens, 1, keys, experts=keys * keys)


@pytest.mark.parametrize("picks", [1, 3, 4])
def test_scores_in_float32_beside_16_bits(picks):
    check(picks, 2, 5, 2, keys=3, experts=11, dtype=np.float16)
