"""Kernels broken on purpose must be caught by the comparisons that the right ones pass."""

from __future__ import annotations

from pathlib import Path

import kernel_mutations as mutations
import pytest
from emulated_library import FORWARD, EmulatedLibrary
from gpu_correctness import Libraries

from doge_export.plugin.sources import plugin_sources


@pytest.fixture
def emulated(emulated_libraries: Libraries):
    library = emulated_libraries.kernels
    assert isinstance(library, EmulatedLibrary)
    yield library
    library.schedule(FORWARD)


@pytest.mark.parametrize("name", mutations.PTX)
def test_a_mistake_in_the_ptx_is_caught(emulated, emulated_libraries, name):
    with emulated.replaced(mutations.mutated_ptx(emulated.ptx("decode_kernelI6__half"), name)):
        for size in mutations.HEAD_SIZES:
            assert mutations.caught(emulated_libraries, "decode", size), f"D {size}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("size", mutations.HEAD_SIZES)
def test_without_a_mistake_nothing_is_caught(emulated, emulated_libraries, kind, size):
    assert mutations.caught(emulated_libraries, kind, size) is None


@pytest.mark.slow
@pytest.mark.parametrize("mutation", mutations.SOURCE, ids=lambda mutation: mutation.name)
def test_a_mistake_in_the_source_is_caught(emulated, emulated_libraries, toolchain, mutation, tmp_path):
    ptx = mutations.compile_mutation(Path(toolchain.nvcc.path), plugin_sources(), mutation, tmp_path)
    with emulated.replaced(ptx):
        for size in mutations.HEAD_SIZES:
            assert mutations.caught(emulated_libraries, mutation.kind, size), f"D {size}"
