"""The PTX that nvcc makes of the kernels, run on the CPU by tests/emulation, on the cases that gpu_check.py has."""

from __future__ import annotations

import dataclasses
import random

import gpu_correctness
import pytest
import torch
from emulated_library import FORWARD, RANDOM
from gpu_correctness import CHUNKS, Check
from operator_cases import LIMITS, AttentionCase, CdmoeCase
from plugin_tree import FP16_HEAD_SIZES, HEAD_SIZES

DTYPES = list(LIMITS)


@pytest.fixture
def libraries(emulated_libraries):
    yield emulated_libraries
    emulated_libraries.kernels.schedule(FORWARD)


def holds(check: Check) -> None:
    assert check.passed, f"{check.name}: error {check.error:.2e}, at most {check.limit:.1e} {check.note}"


def in_every_type(cases):
    return [
        pytest.param(name, dataclasses.replace(case, dtype=dtype), id=f"{name} {dtype}")
        for name, case in cases
        for dtype in DTYPES
    ]


def sizes_of(dtype):
    """Head sizes that are compiled by default."""
    return FP16_HEAD_SIZES if dtype == torch.float16 else HEAD_SIZES


ATTENTION = in_every_type(gpu_correctness.attention_cases())
BY_DEFAULT = [each for each in ATTENTION if each.values[1].size in sizes_of(each.values[1].dtype)]


@pytest.mark.parametrize(("name", "case"), BY_DEFAULT)
def test_attention(libraries, name, case):
    if case.dtype != torch.float16 and max(case.past) > 1000:  # one type shows as much
        case = dataclasses.replace(case, past=tuple(past // 10 for past in case.past))
    holds(gpu_correctness.check_attention(libraries, name, case, "cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), [each for each in ATTENTION if each not in BY_DEFAULT])
def test_attention_of_the_other_head_sizes(emulated_libraries_of_every_size, name, case):
    holds(gpu_correctness.check_attention(emulated_libraries_of_every_size, name, case, "cpu"))


@pytest.mark.parametrize("seed", range(36))
def test_attention_of_random_sizes(libraries, seed):
    random_sizes_hold(libraries, seed, sizes_of)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(36))
def test_attention_of_random_sizes_and_every_head_size(emulated_libraries_of_every_size, seed):
    random_sizes_hold(emulated_libraries_of_every_size, seed, lambda dtype: gpu_correctness.HEAD_SIZES)
    emulated_libraries_of_every_size.kernels.schedule(FORWARD)


def random_sizes_hold(libraries, seed, head_sizes):
    draw = random.Random(seed)
    dtype = draw.choice(DTYPES)
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 5])
    case = AttentionCase(
        past=tuple(draw.randrange(150) for _ in range(draw.choice([1, 3]))),
        new=draw.choice([1, 2, 7, 33]),
        heads=heads,
        kv_heads=kv_heads,
        score_heads=draw.choice([1, kv_heads, heads]),
        size=draw.choice(head_sizes(dtype)),
        window=draw.choice([0, 1, draw.randrange(1, 160)]),
        spare=draw.choice([0, 40]),
        scores=draw.choice(["moderate", "lognormal", "signed", "equal", "levels", "huge", "padding"]),
        dtype=dtype,
        seed=seed,
    )
    libraries.kernels.schedule(RANDOM, seed)
    holds(gpu_correctness.check_attention(libraries, "random", case, "cpu"))


@pytest.mark.parametrize(("name", "case"), in_every_type(gpu_correctness.varied_cases()))
def test_separate_and_padded(libraries, name, case):
    holds(gpu_correctness.check_separate(libraries, name, case, "cpu"))
    holds(gpu_correctness.check_padded(libraries, name, case, "cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=len)
def test_bounded(libraries, dtype, chunks):
    holds(gpu_correctness.check_bounded(libraries, dtype, chunks, "cpu"))


@pytest.mark.parametrize(("name", "case"), in_every_type(gpu_correctness.cdmoe_cases()))
def test_cdmoe(libraries, name, case: CdmoeCase):
    if case.keys == 128:
        case = dataclasses.replace(case, tokens=3)
    holds(gpu_correctness.check_cdmoe(libraries, name, case, "cpu"))
