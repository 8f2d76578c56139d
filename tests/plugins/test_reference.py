"""The C++ reference against PyTorch's operators, and the laws that caches of fixed capacity add to them."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from operator_cases import (
    LIMITS,
    NEG,
    UNTOUCHED,
    AttentionCase,
    AttentionInputs,
    CdmoeCase,
    attention_inputs,
    cdmoe_inputs,
    error,
    expected_attention,
    expected_cdmoe,
)
from torch import Tensor

from doge_export.errors import DogeExportError
from doge_export.model import operators
from doge_export.plugin.library import KernelCache, KernelLibrary
from doge_export.plugin.params import AttentionParams, CdmoeParams

DTYPES = list(LIMITS)


def run(library: KernelLibrary, case: AttentionCase, inputs: AttentionInputs, **options) -> tuple[Tensor, KernelCache]:
    """Output and cache; `inputs` stays as it is."""
    past = inputs.past.clone()
    fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
    output = library.attention(*inputs.tensors(), past, inputs.past_lengths, **fixed, **options)
    return output, options.get("present") or past


def check(library: KernelLibrary, case: AttentionCase) -> None:
    inputs = attention_inputs(case)
    expected, present, specified = expected_attention(case, inputs)
    output, cache = run(library, case, inputs)
    assert output.isfinite().all()

    def where_specified(tensor: Tensor) -> Tensor:
        return tensor.float().unflatten(-1, (case.heads, case.size)) * specified

    assert error(where_specified(output), where_specified(expected)) <= LIMITS[case.dtype]
    for actual, wanted in zip(cache.tensors(), present.tensors(), strict=True):
        assert torch.equal(actual, wanted)  # slots beyond a row's tokens included: they are left alone


def random_case(seed: int, dtype: torch.dtype) -> AttentionCase:
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 5])
    past = tuple(draw.randrange(20) for _ in range(draw.choice([1, 2, 4])))
    new = draw.choice([1, 1, 2, 7])
    return AttentionCase(
        past=past,
        new=new,
        heads=heads,
        kv_heads=kv_heads,
        score_heads=draw.choice([1, kv_heads, heads]),
        size=draw.choice([1, 7, 16, 64]),
        window=draw.choice([0, 1, draw.randrange(1, 26), max(past) + new]),
        spare=draw.choice([0, 4]),
        scores=draw.choice(["moderate", "lognormal", "signed", "equal", "levels", "huge", "padding"]),
        dtype=dtype,
        seed=seed,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(40))
def test_attention_of_random_sizes(library, seed, dtype):
    check(library, random_case(seed, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    {
        "nothing cached": AttentionCase(past=(0, 0), new=9, window=4),
        "one token ever": AttentionCase(past=(0,), new=1),
        "decode": AttentionCase(past=(17,), new=1, window=5),
        "window of T": AttentionCase(past=(6,), new=4, window=10),
        "window above T": AttentionCase(past=(6,), new=4, window=4000),
        "window of one": AttentionCase(past=(6,), new=4, window=1),
        "all padding": AttentionCase(past=(4, 0), window=3, scores="all padding"),
        "some padding": AttentionCase(past=(9, 2), window=4, scores="padding"),
        "equal scores": AttentionCase(past=(9, 2), window=4, scores="equal"),
        "zeros of both signs": AttentionCase(past=(9, 2), window=4, scores="levels"),
        "scores below zero": AttentionCase(past=(9, 2), window=4, scores="signed"),
        "scores of 1e30": AttentionCase(past=(30, 2), window=4, scores="huge"),
        "rows of many lengths": AttentionCase(past=tuple(range(16)), new=2, window=6, score_heads=4),
        "one score for all heads": AttentionCase(past=(9, 2), window=4, score_heads=1),
        "one key head": AttentionCase(heads=16, kv_heads=1, score_heads=16, window=3),
        "no spare slot": AttentionCase(past=(9, 2), spare=0),
        "kernel sizes": AttentionCase(past=(100, 3), new=5, heads=8, kv_heads=2, size=128, window=64),
    }.items(),
    ids=lambda item: item[0],
)
def test_attention_edges(library, case, dtype):
    check(library, dataclasses.replace(case[1], dtype=dtype))


@pytest.mark.parametrize("scores", ["equal", "levels"])
def test_of_equal_scores_the_lower_place_is_kept(library, scores):
    """What a key that is not among the first w of equals holds changes nothing."""
    case = AttentionCase(past=(8,), new=1, window=3, scores=scores, score_heads=1)
    inputs = attention_inputs(case)
    all_scores = torch.cat([inputs.past.score[0, 0, :8], inputs.score[0, :, 0]]).tolist()
    kept = sorted(range(9), key=lambda place: (-all_scores[place], place))[:3]
    output, _ = run(library, case, inputs)
    for place in set(range(8)) - set(kept):
        inputs.past.value[:, :, place] = math.inf
    assert torch.equal(run(library, case, inputs)[0], output)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_is_separate(library, window, dtype):
    case = AttentionCase(past=(9, 0, 4), new=3, window=window, dtype=dtype)
    inputs = attention_inputs(case)
    untouched = KernelCache(*(torch.full_like(tensor, UNTOUCHED) for tensor in inputs.past.tensors()))
    in_place, cache = run(library, case, inputs)
    separate, present = run(library, case, inputs, present=untouched)
    assert torch.equal(in_place, separate)
    for one, other in zip(cache.tensors(), present.tensors(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 7), (11, 1), (1, 4, 4, 3)])
def test_chunks_give_what_one_call_gives(library, window, chunks):
    case = AttentionCase(past=(0, 0), new=12, window=window, scores="levels")
    inputs = attention_inputs(case)
    whole, cache = run(library, case, inputs)
    parts, chunked, _ = in_chunks(library, case, inputs, chunks, inputs.past.clone())
    assert torch.equal(parts, whole)
    for one, other in zip(chunked.tensors(), cache.tensors(), strict=True):
        assert torch.equal(one, other)


def in_chunks(
    library: KernelLibrary, case: AttentionCase, inputs: AttentionInputs, chunks: tuple[int, ...], cache: KernelCache
) -> tuple[Tensor, KernelCache, Tensor]:
    """Reads the new tokens chunk after chunk, in place: outputs, cache, lengths."""
    outputs, lengths = [], inputs.past_lengths.clone()
    for part in zip(*(tensor.split(chunks, dim=1) for tensor in inputs.tensors()), strict=True):
        part = [tensor.contiguous() for tensor in part]
        fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
        outputs.append(library.attention(*part, cache, lengths, **fixed))
        lengths += part[0].shape[1]
    return torch.cat(outputs, dim=1), cache, lengths


def bounded_cache(case: AttentionCase, batch: int) -> KernelCache:
    shape = (batch, case.kv_heads, case.window)
    wide = torch.full((*shape, case.size), UNTOUCHED, dtype=case.dtype)
    return KernelCache(wide, wide.clone(), torch.full(shape, UNTOUCHED), torch.full(shape, -1, dtype=torch.int32))


@pytest.mark.parametrize("scores", ["moderate", "lognormal", "signed", "equal", "levels", "padding", "huge"])
@pytest.mark.parametrize(
    ("window", "chunks"), [(1, (20,)), (6, (1,) * 20), (6, (9, 1, 10)), (19, (20,)), (30, (4, 16))]
)
def test_a_bounded_cache_loses_nothing(library, window, chunks, scores):
    case = AttentionCase(past=(0, 0), new=20, window=window, scores=scores)
    inputs = attention_inputs(case)
    expected, cache = run(library, case, inputs)
    output, bounded, _ = in_chunks(library, case, inputs, chunks, bounded_cache(case, 2))
    assert error(output, expected) <= 1e-6
    check_slots(case, cache, bounded, tokens=20)


def check_slots(case: AttentionCase, whole: KernelCache, bounded: KernelCache, tokens: int) -> None:
    """A bounded cache holds the best keys of the whole one, at slots that say which."""
    for row, head in torch.cartesian_prod(torch.arange(len(case.past)), torch.arange(case.kv_heads)).tolist():
        scores = whole.score[row, head].tolist()
        best = sorted(range(tokens), key=lambda place: (-scores[place], place))[: case.window]
        places = bounded.slots[row, head].tolist()
        assert sorted(places[: len(best)]) == sorted(best)
        assert places[len(best) :] == [-1] * (case.window - len(best))
        for slot, place in enumerate(places[: len(best)]):
            for held, token in ((bounded.key, whole.key), (bounded.value, whole.value), (bounded.score, whole.score)):
                assert torch.equal(held[row, head, slot], token[row, head, place])
        for tensor in (bounded.key, bounded.value, bounded.score):
            assert (tensor[row, head, len(best) :] == UNTOUCHED).all()


def test_padding_takes_no_slot(library):
    """Rows of 3, 8 and 0 real tokens: as if each were alone, and the others' caches as before."""
    case = AttentionCase(past=(0, 0, 0), new=8, window=4)
    inputs = attention_inputs(case)
    real = torch.tensor([3, 8, 0], dtype=torch.int32)
    cache = bounded_cache(case, 3)
    fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
    output = library.attention(*inputs.tensors(), cache, inputs.past_lengths, new_lengths=real, **fixed)
    assert output.isfinite().all()
    for row, count in enumerate(real.tolist()):
        alone = bounded_cache(case, 1)
        if count:
            tensors = [tensor[row : row + 1, :count].contiguous() for tensor in inputs.tensors()]
            zero = torch.zeros(1, dtype=torch.int32)
            assert torch.equal(library.attention(*tensors, alone, zero, **fixed)[0], output[row, :count])
        for together, single in zip(cache.tensors(), alone.tensors(), strict=True):
            assert torch.equal(together[row], single[0])


def test_in_place_is_separate_in_a_bounded_cache(library):
    case = AttentionCase(past=(0, 0), new=9, window=4)
    inputs = attention_inputs(case)
    _, past, lengths = in_chunks(library, case, inputs, (9,), bounded_cache(case, 2))
    present = bounded_cache(case, 2)
    fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
    separate = library.attention(*inputs.tensors(), past.clone(), lengths, present=present, **fixed)
    assert torch.equal(library.attention(*inputs.tensors(), past, lengths, **fixed), separate)
    for one, other in zip(past.tensors(), present.tensors(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("window", [0, 4])
def test_a_row_is_the_row_alone(library, window):
    """Neighbours, their lengths, and padding on the right change no bit."""
    case = AttentionCase(past=(7, 2, 0), new=5, window=window)
    inputs = attention_inputs(case)
    real = torch.tensor([5, 3, 4], dtype=torch.int32)
    output, cache = run(library, case, inputs, new_lengths=real)
    for row, (past, count) in enumerate(zip(case.past, real.tolist(), strict=True)):
        alone = KernelCache(*(tensor[row : row + 1].clone() for tensor in inputs.past.tensors()))
        tensors = [tensor[row : row + 1, :count].contiguous() for tensor in inputs.tensors()]
        length = torch.tensor([past], dtype=torch.int32)
        fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
        assert torch.equal(library.attention(*tensors, alone, length, **fixed)[0], output[row, :count])
        for together, single in zip(cache.tensors(), alone.tensors(), strict=True):
            assert torch.equal(together[row], single[0])


def test_what_does_not_fit_is_not_stored(library):
    case = AttentionCase(past=(6, 1), new=4, spare=-3)
    assert case.capacity == 7
    inputs = attention_inputs(case)
    output, cache = run(library, case, inputs)
    assert output.isfinite().all()
    roomy = dataclasses.replace(case, spare=0)
    space = KernelCache(*(torch.cat([t, t[:, :, :3]], dim=2).contiguous() for t in inputs.past.tensors()))
    enough, wide = run(library, roomy, dataclasses.replace(inputs, past=space))
    assert torch.equal(output[0, :1], enough[0, :1])
    assert torch.equal(output[1], enough[1])
    for small, large in zip(cache.tensors(), wide.tensors(), strict=True):
        assert torch.equal(small, large[:, :, :7])


def random_cdmoe(seed: int, dtype: torch.dtype) -> CdmoeCase:
    draw = random.Random(seed)
    keys = draw.choice([1, 2, 5, 16])
    return CdmoeCase(
        tokens=draw.choice([1, 2, 9]),
        hidden=draw.choice([1, 30, 64]),
        keys=keys,
        heads=draw.choice([1, 1, 3]),
        picks=draw.choice([1, keys, keys**2, draw.randint(1, keys**2)]),
        spare=draw.choice([0, 3]),
        weights_inside=draw.random() < 0.3,
        scores=draw.choice(["usual", "levels", "close"]),
        dtype=dtype,
        seed=seed,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(30))
def test_cdmoe_of_random_sizes(library, seed, dtype):
    case = random_cdmoe(seed, dtype)
    inputs = cdmoe_inputs(case)
    output = library.cdmoe(*inputs, num_experts_per_tok=case.picks, weights_inside=case.weights_inside)
    assert error(output, expected_cdmoe(case, inputs)) <= LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cdmoe_of_full_size(library, dtype):
    case = CdmoeCase(tokens=2, hidden=256, keys=64, picks=64, dtype=dtype)
    inputs = cdmoe_inputs(case)
    output = library.cdmoe(*inputs, num_experts_per_tok=case.picks)
    assert error(output, expected_cdmoe(case, inputs)) <= LIMITS[dtype]


def test_cdmoe_ranks_sums_as_float32_rounds_them(library):
    """0.25 and 0.5 vanish beside 2^24: the sums are equal, and the lower pair wins though 0.5 is the best of x."""
    x, y = torch.tensor([[[0.25, 0.5]]]), torch.tensor([[[2.0**24, 0.0]]])
    hidden, down = torch.ones(1, 4), torch.ones(4, 4)
    up = torch.arange(4.0)[:, None].expand(4, 4).contiguous() + 1
    output = library.cdmoe(hidden, x, y, down, up, num_experts_per_tok=1)
    assert torch.equal(output, operators.cdmoe(hidden[None], x[None], y[None], down, up, 1)[0])
    torch.testing.assert_close(output, torch.nn.functional.silu(torch.full((1, 4), 4.0)))


def test_cdmoe_takes_scores_in_float32_alone(library):
    case = CdmoeCase(dtype=torch.float16)
    hidden, x, y, *tables = cdmoe_inputs(case)
    with pytest.raises(DogeExportError, match=r"scores_y is .* float16 on cpu; .* float32 on cpu is expected"):
        library.cdmoe(hidden, x, y.half(), *tables, num_experts_per_tok=case.picks)


def test_a_token_is_the_token_alone(library):
    case = CdmoeCase(tokens=5, heads=2, keys=4, picks=3)
    hidden, x, y, *tables = cdmoe_inputs(case)
    output = library.cdmoe(hidden, x, y, *tables, num_experts_per_tok=3)
    for token in range(5):
        one = [tensor[:, token : token + 1].contiguous() for tensor in (hidden, x, y)]
        assert torch.equal(library.cdmoe(*one, *tables, num_experts_per_tok=3)[:, 0], output[:, token])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (AttentionCase(heads=5, kv_heads=2), "num_heads is 5, not a multiple of num_kv_heads, 2"),
        (AttentionCase(score_heads=3), r"num_score_heads is 3, not 1, num_kv_heads \(2\) or num_heads \(4\)"),
        (AttentionCase(window=-1), "keep_window_size is -1, not at least 0"),
        (AttentionCase(new=0), "new_tokens 0"),
        (AttentionCase(past=()), "batch 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_attention_of_wrong_sizes(library, case, message):
    roomy = dataclasses.replace(case, past=case.past or (3,))
    inputs = attention_inputs(roomy)
    if not case.past:
        inputs = AttentionInputs(
            *(t[:0] for t in inputs.tensors()),
            KernelCache(*(t[:0] for t in inputs.past.tensors())),
            inputs.past_lengths[:0],
        )
    with pytest.raises(DogeExportError, match=message):
        run(library, roomy, inputs)


def test_bounded_caches_of_wrong_sizes(library):
    case = AttentionCase(past=(0,), new=2, window=4, score_heads=4)
    inputs = attention_inputs(case)
    fixed = {"num_heads": 4, "scale": 1.0}
    cache = dataclasses.replace(bounded_cache(case, 1), score=torch.zeros(1, 4, 4))
    with pytest.raises(DogeExportError, match=r"needs num_score_heads \(4\) equal to num_kv_heads \(2\)"):
        library.attention(*inputs.tensors(), cache, inputs.past_lengths, keep_window_size=4, **fixed)
    inputs = attention_inputs(dataclasses.replace(case, score_heads=2))
    cache = bounded_cache(case, 1)
    with pytest.raises(DogeExportError, match=r"needs keep_window_size \(3\) equal to capacity \(4\)"):
        library.attention(*inputs.tensors(), cache, inputs.past_lengths, keep_window_size=3, **fixed)
    unbounded = KernelCache(cache.key, cache.value, cache.score)
    with pytest.raises(DogeExportError, match="must both be given"):
        library.attention(*inputs.tensors(), cache, inputs.past_lengths, keep_window_size=4, present=unbounded, **fixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picks": 17}, r"num_experts_per_tok is 17, not 1 to num_keys \* num_keys \(16\)"),
        ({"picks": 0}, "num_experts_per_tok is 0"),
        ({"spare": -1}, r"num_keys is 4, not at least 1 with num_keys \* num_keys <= num_experts \(15\)"),
    ],
)
def test_cdmoe_of_wrong_sizes(library, changes, message):
    case = CdmoeCase(**changes)
    with pytest.raises(DogeExportError, match=message):
        library.cdmoe(*cdmoe_inputs(case), num_experts_per_tok=case.picks)


def test_tensors_that_do_not_fit(library):
    case = AttentionCase()
    inputs = attention_inputs(case)
    for name, wrong, message in (
        ("key", inputs.key.half(), "key is .* float16 on cpu; .* float32 on cpu is expected"),
        ("value", inputs.value[:, :2], r"value is \[1, 2, 32\]"),
        ("score", inputs.score.double(), "score is .* float64"),
        ("query", inputs.query.mT.contiguous().mT, "contiguous"),
        ("past_lengths", inputs.past_lengths.long(), "past_lengths is .* int64"),
        ("query", inputs.query.double(), "query is torch.float64, not float32, float16 or bfloat16"),
    ):
        with pytest.raises(DogeExportError, match=message):
            run(library, case, dataclasses.replace(inputs, **{name: wrong}))


ATTENTION = {
    "batch": 1,
    "new_tokens": 1,
    "capacity": 131072,
    "num_heads": 16,
    "num_kv_heads": 1,
    "num_score_heads": 1,
    "head_size": 128,
    "keep_window_size": 131072,
}
CDMOE = {
    "tokens": 1,
    "hidden_size": 1024,
    "num_experts": 16384,
    "num_keys": 128,
    "num_routing_heads": 1,
    "num_experts_per_tok": 64,
}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (AttentionParams(**ATTENTION), None),
        (AttentionParams(**ATTENTION | {"head_size": 64}), None),
        (
            AttentionParams(**ATTENTION | {"head_size": 72}),
            "head_size is 72; the kernels cover 64, 80, 96, 128 and 256",
        ),
        (
            AttentionParams(**ATTENTION | {"num_heads": 17}),
            "num_heads / num_kv_heads is 17; the kernels cover up to 16",
        ),
        (AttentionParams(**ATTENTION | {"capacity": 131073}), "capacity is 131073; the kernels cover up to 131072"),
        (
            AttentionParams(**ATTENTION | {"keep_window_size": 131073}),
            "keep_window_size is 131073; the kernels cover up to 131072",
        ),
        (AttentionParams(**ATTENTION | {"scale": math.inf}), "scale is inf, not a finite number"),
        (AttentionParams(**ATTENTION | {"dtype": 3}), "dtype is 3, not 0 (float32), 1 (float16) or 2 (bfloat16)"),
        (CdmoeParams(**CDMOE), None),
        (CdmoeParams(**CDMOE | {"num_experts": 16385}), "num_experts is 16385; the kernels cover up to 16384"),
        (CdmoeParams(**CDMOE | {"num_experts_per_tok": 65}), "num_experts_per_tok is 65; the kernels cover up to 64"),
        (CdmoeParams(**CDMOE | {"weights_inside": 2}), "weights_inside is 2, not 0 or 1"),
        (
            CdmoeParams(**CDMOE | {"tokens": 0}),
            "tokens 0, hidden_size 1024 and num_routing_heads 1 must all be at least 1",
        ),
    ],
)
def test_what_the_kernels_cover(library, params, message):
    assert library.problem(params) == message


def test_a_library_without_kernels_says_so(library):
    assert library.architectures == ()
    assert library.status_message(-3) == "this library was built without CUDA: it holds no kernels"
    for status in (0, -1, -2, -4, 1):
        assert library.status_message(status)


def test_the_lowest_score_is_numpys(library):
    assert torch.finfo(torch.float32).min == NEG
