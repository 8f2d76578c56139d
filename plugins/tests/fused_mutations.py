"""Fused attention broken on purpose: would the comparisons of fused_cases.py notice?

python -m pytest -m slow tests/plugins/test_fused_mutations.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from emulated_library import FORWARD, RANDOM, EmulatedLibrary
from fused_cases import BASE, FusedCase, check_fused, check_fused_padded
from gpu_correctness import Libraries
from kernel_mutations import Mutation


def _mutation(name: str, right: str, wrong: str, file: str = "fused_prepare.cuh") -> Mutation:
    return Mutation(name, file, right, wrong, "fused", "fused_attention.cu")


SOURCE = (
    _mutation(
        "the first half is rotated the other way",
        "first * cos[n] - second * sin[n]",
        "first * cos[n] + second * sin[n]",
    ),
    _mutation("halves are pairs of neighbours", "second = to_float(from[half + n])", "second = to_float(from[n ^ 1])"),
    _mutation("the norm has no epsilon", "static_cast<float>(size) + epsilon", "static_cast<float>(size)"),
    _mutation("the second half has the first one's weights", "norm[half + n]", "norm[n]"),
    _mutation("keys have the norm of queries", "from, fused.key_norm, lane", "from, fused.query_norm, lane"),
    _mutation("every token has the angles of the first", "fused.cos + token * (size / 2)", "fused.cos"),
    _mutation("softplus is cut off", "(fmaxf(sum, 0.0f) + log1pf(expf(-fabsf(sum))))", "fmaxf(sum, 0.0f)"),
    _mutation("every score is an exponential", "fused.exponential_score != 0 ? expf(step) : step", "expf(step)"),
    _mutation("scores have the rate of the first head", "fused.score_rate[score_head]", "fused.score_rate[0]"),
    _mutation(
        "the score of another group",
        "block.first_score_head + n - block.group - 1",
        "n - block.group - 1",
        "fused_attention.cuh",
    ),
    _mutation(
        "values are those of the first row",
        "(blockIdx.z + std::size_t{1}) *",
        "std::size_t{1} *",
        "fused_attention.cuh",
    ),
    _mutation(
        "no barrier before the new key is read",
        "    __syncthreads();\n}\n\n// Grid: (splits",
        "}\n\n// Grid: (splits",
        "fused_attention.cuh",
    ),
    _mutation(
        "the value is not cached",
        "static_cast<float4*>(p.present_value)[to + word] = static_cast<const float4*>(p.value)[from + word];",
        "",
        "attention_store.cuh",
    ),
    _mutation(
        "rounded before the rotation, too",
        "first = first * scale * norm[n];",
        "first = to_float(from_float<T>(first * scale * norm[n]));",
    ),
)


def cases(size: int) -> Iterator[FusedCase]:
    """Calls in float16 that a mistake may show in."""
    base = dataclasses.replace(BASE, past=(410, 130, 7), size=size, dtype=torch.float16, spare=30)
    for new in (1, 9):
        yield FusedCase(dataclasses.replace(base, new=new))
        yield FusedCase(dataclasses.replace(base, new=new, window=100, score_heads=8), norm=False)
        yield FusedCase(dataclasses.replace(base, new=new, score_heads=1), exponential=False)


def caught(libraries: Libraries, size: int) -> str | None:
    """Return the first case that fails, under some order of threads; None if all pass."""
    library = libraries.kernels
    assert isinstance(library, EmulatedLibrary)
    for order, seed in ((FORWARD, 1), *((RANDOM, seed) for seed in range(1, 4))):
        for number, case in enumerate(cases(size)):
            library.schedule(order, seed)
            library.forget_workspaces()  # no right results of the same call from before
            for check in (check_fused, check_fused_padded):
                where = f"case {number}, {check.__name__}, order {order}, seed {seed}"
                try:
                    result = check(libraries, "fused", case, "cpu")
                except RuntimeError as problem:
                    if "cannot be read" in str(problem):  # the emulator's fault, which must not pass for a catch
                        raise
                    return f"{where}: {problem}"
                if not result.passed:
                    return f"{where}: error {result.error:.1e} of {result.limit:.1e} {result.note}"
    return None
