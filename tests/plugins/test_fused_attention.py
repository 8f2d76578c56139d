"""Fused attention: its reference against PyTorch, its kernels' PTX against the reference, and both in pieces."""

from __future__ import annotations

import dataclasses
import random

import fused_cases
import gpu_correctness
import pytest
import torch
from emulated_library import FORWARD, RANDOM
from fused_cases import BASE, FusedCase, attention_inputs, call, call_unfused, differs, projected
from gpu_correctness import Check
from operator_cases import LIMITS, AttentionCase, error
from plugin_tree import HEAD_SIZES

from doge_export.errors import DogeExportError

DTYPES = list(LIMITS)


CASES = [(name, case.of_type(dtype)) for dtype in DTYPES for name, case in fused_cases.fused_cases(HEAD_SIZES)]
OTHERS = [
    (name, case.of_type(dtype))
    for dtype in DTYPES
    for name, case in fused_cases.fused_cases(tuple(set(gpu_correctness.HEAD_SIZES) - set(HEAD_SIZES)))
]


def holds(check: Check) -> None:
    assert check.passed, f"{check.name}: error {check.error:.2e}, at most {check.limit:.1e} {check.note}"


def random_case(seed: int, sizes: tuple[int, ...], longest: int) -> FusedCase:
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 5])
    attention = AttentionCase(
        past=tuple(draw.randrange(longest) for _ in range(draw.choice([1, 3]))),
        new=draw.choice([1, 1, 2, 7, 33]),
        heads=heads,
        kv_heads=kv_heads,
        score_heads=draw.choice([1, kv_heads, heads]),
        size=draw.choice(sizes),
        window=draw.choice([0, 1, draw.randrange(1, longest + 10)]),
        spare=draw.choice([0, 40]),
        dtype=dtype,
        seed=seed,
    )
    return FusedCase(attention, 4 * draw.randrange(1, 80), draw.random() < 0.7, draw.random() < 0.8)


@pytest.mark.parametrize("seed", range(12))
def test_the_reference_computes_what_pytorch_does(library, seed):
    case = random_case(seed, (2, 16, 64), 20)
    inputs, new = attention_inputs(case.attention), projected(case)
    expected_cache, cache = inputs.past.clone(), inputs.past.clone()
    expected = call_unfused(library, case, new, expected_cache, inputs.past_lengths)
    output = call(library, case, new, cache, inputs.past_lengths)
    assert error(output, expected) <= LIMITS[case.dtype]
    assert differs(cache, expected_cache, case) == ""


@pytest.fixture
def libraries(emulated_libraries):
    yield emulated_libraries
    emulated_libraries.kernels.schedule(FORWARD)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_kernels(libraries, name, case):
    holds(fused_cases.check_fused(libraries, name, case, "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), OTHERS)
def test_other_head_sizes(emulated_libraries_of_every_size, name, case):
    holds(fused_cases.check_fused(emulated_libraries_of_every_size, name, case, "cpu"))


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 60))])
def test_kernels_at_random_sizes(libraries, seed):
    libraries.kernels.schedule(RANDOM, seed)
    holds(fused_cases.check_fused(libraries, "random", random_case(seed, HEAD_SIZES, 150), "cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("new", [1, 3, 40])
def test_separate_and_padded(libraries, new, dtype):
    case = FusedCase(dataclasses.replace(BASE, new=new, window=20, dtype=dtype))
    holds(fused_cases.check_fused_separate(libraries, f"S {new}", case, "cpu"))
    holds(fused_cases.check_fused_padded(libraries, f"S {new}", case, "cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cached_equals_uncached(libraries, dtype):
    case = FusedCase(dataclasses.replace(BASE, new=40, window=20, dtype=dtype))
    holds(fused_cases.check_steps(libraries, case, "cpu"))


BOUNDED = {torch.float32: (30, 60), torch.float16: (1,) * 60, torch.bfloat16: (50, 1, 1, 30)}
"""Chunks by default; the others are slow."""


@pytest.mark.parametrize(
    ("chunks", "dtype"),
    [
        pytest.param(chunks, dtype, marks=() if chunks == BOUNDED[dtype] else pytest.mark.slow)
        for chunks in fused_cases.CHUNKS
        for dtype in DTYPES
    ],
)
@pytest.mark.parametrize("norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_bounded(libraries, chunks, dtype, norm):
    holds(fused_cases.check_fused_bounded(libraries, dtype, chunks, "cpu", norm=norm))


def test_a_step_is_one_launch(libraries):
    """What the fused operator is for; a prompt takes one more than attention alone."""

    def launched(new: int) -> dict[str, int]:
        before = libraries.kernels.launches()
        fused_cases.check_fused(libraries, "launches", FusedCase(dataclasses.replace(BASE, new=new)), "cpu")
        after = libraries.kernels.launches()
        return {name: after[name] - before[name] for name in after if after[name] != before[name]}

    (name,) = launched(1)
    assert "fused_decode_kernel" in name and launched(1)[name] == 1
    several = [*launched(40)]
    assert len(several) == 2 and any("prepare_kernel" in name for name in several)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"inputs": 6}, "num_score_inputs is 6; the kernels cover multiples of 4"),
        ({"attention": dataclasses.replace(BASE, size=48)}, "head_size is 48; the kernels cover"),
        ({"attention": dataclasses.replace(BASE, size=7)}, "head_size is 7, not even"),
    ],
)
def test_sizes_that_are_refused(libraries, changes, problem):
    case = dataclasses.replace(FusedCase(BASE), **changes)
    inputs = attention_inputs(case.attention)
    with pytest.raises(DogeExportError, match=problem):
        call(libraries.kernels, case, projected(case), inputs.past, inputs.past_lengths)
