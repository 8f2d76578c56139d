"""Fused kernels broken on purpose must be caught by the comparisons that the right ones pass."""

from __future__ import annotations

from pathlib import Path

import fused_mutations
import pytest
from emulated_library import FORWARD
from kernel_mutations import HEAD_SIZES, compile_mutation

from doge_export.plugin.sources import plugin_sources


@pytest.fixture
def libraries(emulated_libraries):
    yield emulated_libraries
    emulated_libraries.kernels.schedule(FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("size", HEAD_SIZES)
def test_without_a_mistake_nothing_is_caught(libraries, size):
    assert fused_mutations.caught(libraries, size) is None


@pytest.mark.slow
@pytest.mark.parametrize("mutation", fused_mutations.SOURCE, ids=lambda mutation: mutation.name)
def test_a_mistake_is_caught(libraries, toolchain, mutation, tmp_path):
    ptx = compile_mutation(Path(toolchain.nvcc.path), plugin_sources(), mutation, tmp_path)
    with libraries.kernels.replaced(ptx):
        for size in HEAD_SIZES:
            assert fused_mutations.caught(libraries, size), f"D {size}"
