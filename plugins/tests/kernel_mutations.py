"""Kernels broken on purpose: would the comparisons of gpu_correctness.py notice?

    python -m pytest -m slow tests/plugins/test_kernel_mutations.py

Each mutation of the source is compiled to PTX, which takes the place of the right kernel in the emulator.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from emulated_library import FORWARD, RANDOM, EmulatedLibrary
from gpu_correctness import Libraries, check_attention
from operator_cases import AttentionCase

HEAD_SIZES = (64, 128)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A mistake in a file of plugins/kernels: `right` becomes `wrong`.

    Attributes:
        kind: the cases that must notice: "decode" or "prefill".
        compiled: the file that is compiled to PTX.
    """

    name: str
    file: str
    right: str
    wrong: str
    kind: str = "decode"
    compiled: str = "attention_fp16.cu"


SOURCE = (
    Mutation(
        "a split is dropped",
        "attention_decode_merge.cuh",
        "for (int s = sharer; s < splits; s += sharers)",
        "for (int s = sharer; s < splits - 1; s += sharers)",
    ),
    Mutation(
        "the sum of a split's weights is dropped",
        "attention_decode_merge.cuh",
        "total = fmaf(factor, sum.y, total);",
        "if (s > 0) total = fmaf(factor, sum.y, total);",
    ),
    Mutation(
        "a warp's last tile is skipped",
        "attention_decode_attend.cuh",
        "for (; start < count; start += Block::kWarps * kDecodeKeys) {",
        "for (; start + kDecodeKeys < count; start += Block::kWarps * kDecodeKeys) {",
    ),
    Mutation(
        "the window is one key too small",
        "attention_decode_select.cuh",
        "count, p.keep_window_size,",
        "count, p.keep_window_size - 1,",
    ),
    Mutation("the newest key is not seen", "attention_decode_attend.cuh", "number <= last", "number < last"),
    Mutation("the ticket is left as it is", "tickets.cuh", "if (last) atomicExch(ticket, kTicketMark);", ""),
    Mutation(
        "no fence before the ticket",
        "tickets.cuh",
        "__threadfence();  // what this thread wrote is seen before the ticket is",
        "",
    ),
    Mutation(
        "a score head of another group",
        "attention_decode_block.cuh",
        "first_score_head(kv_head * group * params.num_score_heads / params.num_heads)",
        "first_score_head(kv_head * params.num_score_heads / params.num_heads)",
    ),
    Mutation(
        "query heads are interleaved",
        "attention_decode_block.cuh",
        "kv_head * group +\n                head_of(r)",
        "kv_head +\n                head_of(r) * p.num_kv_heads",
    ),
    Mutation("the online sum is not rescaled", "attention_tile.cuh", "total[r] *= factor;", ""),
    Mutation("keys are used before they arrive", "attention_decode_attend.cuh", "async_wait<1>();", "async_wait<2>();"),
    Mutation(
        "warps are merged before they have written",
        "attention_decode_merge.cuh",
        "    __syncthreads();\n    const std::size_t part",
        "    const std::size_t part",
    ),
    Mutation(
        "values are not transposed",
        "attention_tile.cuh",
        "load_matrices_transposed(b, values",
        "load_matrices(b, values",
    ),
    Mutation(
        "a prompt's window is one key too small",
        "attention_threshold.cuh",
        "const int keep = p.keep_window_size;",
        "const int keep = p.keep_window_size - 1;",
        "prefill",
        "attention.cu",
    ),
    Mutation(
        "a prompt's token does not see itself",
        "attention_prefill.cuh",
        "own_number <= last[e / 2]",
        "own_number < last[e / 2]",
        "prefill",
    ),
    Mutation(
        "a prompt's second tile is skipped",
        "attention_prefill.cuh",
        "if (!is_last) {\n                first = next;",
        "if (!is_last) {\n                first = first == 0 ? min(next + kKeys, count - 1) : next;",
        "prefill",
    ),
)


PTX = {
    "rows of A are swapped": (
        r"(mma\.sync\S+ \{[^}]*\}, \{%r\d+), (%r\d+), (%r\d+), ",
        r"\1, \3, \2, ",
    ),
    "no wait for copies": (r"cp\.async\.wait_group \d+;", ""),
}
"""Mistakes in the PTX itself: a pattern and what it becomes."""


def cases(kind: str, size: int) -> Iterator[AttentionCase]:
    """Calls in float16 that a mistake may show in: several splits and none, with and without selection."""
    base = AttentionCase(
        past=(410, 130), new=1, heads=4, kv_heads=2, score_heads=2, size=size, dtype=torch.float16, spare=30
    )
    if kind == "prefill":
        base = dataclasses.replace(base, past=(130, 7), new=70)
    for window in (0, 100):
        yield dataclasses.replace(base, window=window)
    yield dataclasses.replace(base, heads=8, score_heads=8, window=40)


def caught(libraries: Libraries, kind: str, size: int) -> str | None:
    """Return the first case that fails, under some order of threads; None if all pass."""
    library = libraries.kernels
    assert isinstance(library, EmulatedLibrary)
    for order, seed in ((FORWARD, 1), *((RANDOM, seed) for seed in range(1, 13))):
        for number, case in enumerate(cases(kind, size)):
            library.schedule(order, seed)
            library.forget_workspaces()  # no right results of the same call from before
            for turn in range(2):  # the second finds the workspace as the first leaves it
                where = f"case {number}, turn {turn}, order {order}, seed {seed}"
                try:
                    check = check_attention(libraries, kind, case, "cpu")
                except RuntimeError as problem:
                    if "cannot be read" in str(problem):  # the emulator's fault, which must not pass for a catch
                        raise
                    return f"{where}: {problem}"
                if not check.passed:
                    return f"{where}: error {check.error:.1e} of {check.limit:.1e} {check.note}"
    return None


def mutated_ptx(text: str, name: str) -> str:
    """Return PTX with one of the mistakes of PTX."""
    changed, count = re.subn(*PTX[name], text)
    assert count > 0, f"{name}: there is no such place in the PTX"
    return changed


def compile_mutation(nvcc: Path, plugins: Path, mutation: Mutation, folder: Path) -> str:
    """Return the PTX of the mutation's file, with the mistake in its source, for HEAD_SIZES."""
    kernels = folder / "kernels"
    shutil.copytree(plugins / "kernels", kernels)
    source = (kernels / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.right) > 0, f"{mutation.name}: {mutation.file} has changed"
    (kernels / mutation.file).write_text(source.replace(mutation.right, mutation.wrong), encoding="utf-8")
    sizes = r"\,".join(map(str, HEAD_SIZES))  # nvcc reads a list of definitions otherwise
    target = folder / "mutated.ptx"
    command = [nvcc, "-std=c++17", "-O3", "-arch=compute_89", "-ptx", f"-DDOGE_HEAD_SIZES={sizes}"]
    command += [f"-I{plugins / name}" for name in ("include", "sizes")]
    subprocess.run([*command, kernels / mutation.compiled, "-o", target], check=True, capture_output=True)
    return target.read_text(encoding="utf-8")
