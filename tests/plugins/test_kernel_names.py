"""plugins/tests/kernel_names.py: what gpu_check.py compares to tell which kernels never ran."""

from __future__ import annotations

import pytest
from kernel_names import kernels_of, short_name


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void doge::decode_kernel<__half, 64>(doge_attention_params, doge::AttentionWorkspace)",
            "decode_kernel<__half, 64>",
        ),
        ("void doge::decode_kernel<__half, (int)64>(doge_attention_params)", "decode_kernel<__half, 64>"),
        ("doge::cdmoe::cdmoe_route(doge_cdmoe_params, doge::cdmoe::Picks)", "cdmoe_route"),
        ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pinned -> Device)"),
    ],
)
def test_short_names(demangled, name):
    assert short_name(demangled) == name


def test_the_kernels_of_a_library(compiled_with_kernels):
    found = kernels_of(compiled_with_kernels("doge_kernels_c") / "lib" / "libdoge_kernels_c.so")
    kinds = {name.split("<")[0] for name in found}
    attention = {"decode_kernel", "prefill_kernel", "threshold_kernel", "replace_kernel", "copy_cache_kernel"}
    fused = {"fused_decode_kernel", "fused_prepare_kernel"}
    assert kinds == attention | fused | {"cdmoe_decode", "cdmoe_route", "cdmoe_down", "cdmoe_up"}
    assert {"decode_kernel<float, 64>", "prefill_kernel<__nv_bfloat16, 64>"} <= found
