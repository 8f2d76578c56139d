"""The kernels compiled by nvcc: they are there, they say what they lack, and where there is a GPU they are right."""

from __future__ import annotations

import gpu_correctness
import pytest
import torch
from gpu_correctness import Libraries

from doge_export.errors import DogeExportError
from doge_export.plugin.build import KERNELS
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.params import AttentionParams, CdmoeParams

ATTENTION = AttentionParams(2, 1, 4096, 16, 8, 8, 128, 0, 0.1, 1)
CDMOE = CdmoeParams(1, 1024, 16384, 128, 1, 64, 0, 0, 1)


@pytest.fixture(scope="session")
def kernels(compiled_with_kernels) -> KernelLibrary:
    return KernelLibrary(compiled_with_kernels("doge_kernels_c") / "lib" / KERNELS)


def test_they_are_compiled_for_what_was_asked(kernels, gpu_architecture):
    assert kernels.architectures == (gpu_architecture or "89",)


@pytest.mark.parametrize("params", [ATTENTION, CDMOE], ids=["attention", "cdmoe"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_call_says_so(kernels, params):
    """What CUDA's runtime, linked into the library, finds: no driver (or no device), in its words."""
    memory = torch.empty(2**24, dtype=torch.uint8)
    workspace = memory[-memory.data_ptr() % 256 :]
    with pytest.raises(RuntimeError, match=r"driver|device.*\(status \d+\)"):
        kernels._launch(params, torch.device("cpu"), workspace, None)


def test_a_workspace_that_is_too_small_is_refused(kernels):
    with pytest.raises(RuntimeError, match=r"the workspace is smaller .*\(status -2\)"):
        kernels._launch(ATTENTION, torch.device("cpu"), torch.empty(0, dtype=torch.uint8), None)


def test_a_library_without_kernels_refuses(library):
    with pytest.raises(DogeExportError, match=r"holds no kernels; build one with nvcc: doge-export plugin build"):
        library._launch(CDMOE, torch.device("cpu"), None, None)


def test_a_tensor_at_an_odd_address_is_refused(library):
    """The kernels read 16 bytes at a time; a misaligned read would end the process's use of the GPU."""
    params = CdmoeParams.from_buffer_copy(CDMOE)
    params.hidden = 4096 + 8
    with pytest.raises(DogeExportError, match=r"^hidden begins at .* no multiple of 16; pass hidden.clone\(\)$"):
        library._launch(params, torch.device("cpu"), None, None)


@pytest.mark.parametrize("field", ["batch", "new_tokens", "capacity", "num_heads", "num_kv_heads"])
def test_a_workspace_never_shrinks(kernels, field):
    """So that the one for the largest sizes of a profile is enough for all."""
    sizes = {"batch": 1, "new_tokens": 1, "capacity": 512, "num_heads": 8, "num_kv_heads": 8, "num_score_heads": 8}
    needed = []
    for factor in (1, 2, 3, 8, 16, 64, 200):
        grown = sizes | {field: sizes[field] * factor, "head_size": 128, "keep_window_size": 100, "dtype": 1}
        if field == "num_kv_heads":
            grown |= {"num_heads": sizes["num_heads"] * factor, "num_score_heads": grown["num_kv_heads"]}
        if field == "num_heads" and factor > 16:
            continue
        needed.append(kernels._function_of(ATTENTION, "_workspace_bytes")(AttentionParams(**grown, scale=1.0)))
    assert needed == sorted(needed)


@pytest.mark.gpu
def test_they_are_right(gpu_architecture, request):
    """The quick cases of gpu_check.py, which has the rest."""
    if gpu_architecture is None:
        pytest.skip("no GPU that PyTorch can use")
    library = request.getfixturevalue("kernels")
    wrong = [check for check in gpu_correctness.all_checks(Libraries(library, library)) if not check.passed]
    assert wrong == []
