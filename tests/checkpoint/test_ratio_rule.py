"""The share of keys that the fourth generation leaves out, against a literal statement of each published rule.

The rules were WonderfulMatrices f83ccb6 (G4a), small-doge 42e5a63 ("all"), 294b2e9 ("guarded") and 5d28cf0, 9a711df,
8eec8cc, and for the second Doge 605f0f8 ("excess").
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from older_doge import older_doge

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.identify import Assumptions
from doge_export.model.operators import NEG, ratio_mask_attention

HEADS, KV_HEADS, SIZE, KEEP = 4, 2, 16, 20
CASES = [
    ("G4a", "all", 0.3),
    ("G4a", None, 0.3),
    ("G4b", "all", 0.3),
    ("G4b", "all", 0.999),
    ("G4b", "guarded", 0.3),
    ("G4b", "excess", 0.3),
    ("G4b", None, 1.0),
    ("G6a", None, 0.7),
]


def left_out(scores: list[float], rule: str, ratio: float) -> list[bool]:
    """Which keys of a head go: those below the count-th lowest score, so one less than `count`, and no tie with it."""
    keys = len(scores)
    count = 0
    if rule == "all" and 0 < ratio < 1:
        count = int(keys * ratio)
    if rule == "guarded" and 0 < ratio < 1 and keys > KEEP:
        count = int(keys * ratio)
    if rule == "excess" and 0 < ratio <= 1 and keys > KEEP:
        count = int((keys - KEEP) * ratio)
    if count == 0:
        return [False] * keys
    limit = sorted(scores)[count - 1]
    return [score < limit for score in scores]


def attended(query, keys, values, scores, is_token, rule, ratio, added):
    """One row after another: query [S, Hq, D], keys and values [T, Hkv, D], scores [T, Hq], is_token [T]."""
    new, total = len(query), len(keys)
    rows = torch.empty(new, HEADS, SIZE)
    for head in range(HEADS):
        gone = left_out(scores[:, head].tolist(), rule, ratio)
        for row in range(new):
            logits = []
            for key in range(total):
                hidden = key > total - new + row or not is_token[key]
                bias = NEG if gone[key] else float(scores[key, head])
                if added:
                    bias = bias + (NEG if hidden else 0.0)
                    bias = -math.inf if bias < NEG else bias  # as float32 has it
                elif hidden:
                    bias = NEG
                product = float(query[row, head] @ keys[key, head // 2]) * SIZE**-0.5
                logits.append(product + bias)
            weights = torch.tensor(logits, dtype=torch.float32).softmax(0)
            rows[row, head] = weights @ values[:, head // 2]
    return rows


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request, tmp_path_factory):
    """(generation, rule, ratio, what a checkpoint's config makes of them)."""
    generation, scope, ratio = request.param
    folder = older_doge(tmp_path_factory.mktemp("ratio"), generation, dynamic_mask_ratio=ratio)
    assumed = Assumptions(generation="G4a" if generation == "G4a" else None, ratio_mask=scope)
    mask = open_checkpoint(folder, assumed=assumed).architecture.ratio_mask
    return generation, scope or ("all" if generation == "G4a" else "excess"), ratio, mask


@pytest.mark.parametrize(("total", "new"), [(KEEP, 1), (KEEP + 1, 1), (33, 1), (33, 7), (KEEP, KEEP), (33, 33)])
@pytest.mark.parametrize("ties", [False, True])
def test_rule(case, total, new, ties):
    generation, rule, ratio, mask = case
    past = total - new

    random = torch.Generator().manual_seed(total + new)
    query = torch.randn(1, new, HEADS, SIZE, generator=random)
    keys, values = (torch.randn(1, total, KV_HEADS, SIZE, generator=random) for _ in range(2))
    scores = torch.rand(1, total, HEADS, generator=random)
    if ties:
        scores = (4 * scores).round() / 4
    is_token = torch.ones(total, dtype=torch.bool)
    is_token[:5] = False
    column = torch.where(is_token, 0.0, NEG)[None, :, None]
    with_padding = torch.cat([scores, column], dim=-1)
    output, *_ = ratio_mask_attention(
        query.flatten(2),
        keys[:, past:].flatten(2),
        values[:, past:].flatten(2),
        with_padding[:, past:],
        keys[:, :past].transpose(1, 2),
        values[:, :past].transpose(1, 2),
        with_padding[:, :past].transpose(1, 2),
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        scale=SIZE**-0.5,
        **dataclasses.asdict(mask),
    )
    expected = attended(query[0], keys[0], values[0], scores[0], is_token, rule, ratio, generation != "G4a")
    assert torch.allclose(output[0].unflatten(-1, (HEADS, SIZE)), expected, atol=1e-5)


def test_the_rules_differ():
    scores = [float(score) for score in range(30)]
    counts = {rule: sum(left_out(scores, rule, 0.3)) for rule in ("all", "guarded", "excess")}
    assert counts == {"all": 8, "guarded": 8, "excess": 2}
    few = {rule: sum(left_out(scores[:KEEP], rule, 0.3)) for rule in ("all", "guarded", "excess")}
    assert few == {"all": 5, "guarded": 0, "excess": 0}
    assert sum(left_out([1.0] * 30, "all", 0.5)) == 0
