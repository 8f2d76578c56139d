"""plugins/tests/resources: would it notice a kernel that grew? (ctest's `resources` runs it on the real ones.)"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from resources.check_resources import SKIPPED, kernel_name, main, problems, read_usage

from doge_export.plugin.sources import plugin_sources

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4doge5cdmoe12cdmoe_decodeI6__halfEEv17doge_cdmoe_params' for 'sm_89'
ptxas info    : Function properties for _ZN4doge5cdmoe12cdmoe_decodeI6__halfEEv17doge_cdmoe_params
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 106 registers, used 1 barriers, 456 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4fillPf' for 'sm_90'
ptxas info    : Function properties for _Z4fillPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 2048 bytes smem, 456 bytes cmem[0]
"""
ENOUGH = {
    "cdmoe_decode": {"registers": 106},
    "fill": {"registers": 30, "stack_bytes": 8, "spill_bytes": 12, "shared_bytes": 2048},
}


def test_what_ptxas_says_is_understood() -> None:
    decode, fill = read_usage(REPORT)
    assert (decode.kernel, decode.architecture, decode.registers) == ("cdmoe_decode", "sm_89", 106)
    assert (decode.stack_bytes, decode.spill_bytes, decode.shared_bytes) == (0, 0, 0)
    assert (fill.kernel, fill.architecture, fill.registers) == ("fill", "sm_90", 30)
    assert (fill.stack_bytes, fill.spill_bytes, fill.shared_bytes) == (8, 12, 2048)
    with pytest.raises(ValueError, match="not the output of ptxas"):
        list(read_usage("ptxas info    : Compiling entry function 'x' for 'sm_89'\nnothing more"))


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("_Z4fillPf", "fill"),
        ("_ZN4doge13decode_kernelI6__halfLi256EEEv21doge_attention_params", "decode_kernel"),
        ("_ZN4doge12_GLOBAL__N_14copyEv", "copy"),
    ],
)
def test_names(entry: str, name: str) -> None:
    assert kernel_name(entry) == name


@pytest.mark.parametrize("measure", ["registers", "stack_bytes", "spill_bytes", "shared_bytes"])
def test_each_limit_holds(measure: str) -> None:
    usages = list(read_usage(REPORT))
    assert problems(ENOUGH, usages) == []
    tight = {**ENOUGH, "fill": {**ENOUGH["fill"], measure: ENOUGH["fill"][measure] - 1}}
    assert [line for line in problems(tight, usages) if measure in line and "fill on sm_90" in line]


def test_kernels_and_limits_belong_together() -> None:
    usages = list(read_usage(REPORT))
    assert problems({"fill": ENOUGH["fill"]}, usages) == ["cdmoe_decode has no limits"]
    assert problems({**ENOUGH, "gone": {}}, usages) == ["gone has limits, but there is no such kernel"]


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = tmp_path / "limits.toml"
    (tmp_path / "a.o.usage").write_text(REPORT)
    limits.write_text('architectures = ["sm_89"]\n[kernels.cdmoe_decode]\nregisters = 106\n')
    assert main(str(limits), str(tmp_path / "a.o")) == 0
    limits.write_text('architectures = ["sm_89"]\n[kernels.cdmoe_decode]\nregisters = 105\n')
    assert main(str(limits), str(tmp_path / "a.o")) == 1
    limits.write_text('architectures = ["sm_75"]\n[kernels]\n')
    assert main(str(limits), str(tmp_path / "a.o")) == SKIPPED
    assert "106 registers, limit 105" in capsys.readouterr().out


def test_the_report_is_recorded_and_the_rest_is_shown(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{REPORT}a warning\nEND\nexit 3\n")
    compiler.chmod(0o755)
    record = plugin_sources() / "tests" / "resources" / "record_usage.sh"
    command = ["sh", record, compiler, "-c", "a.cu", "-o", tmp_path / "a.o", "-x"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 3
    assert run.stderr == "a warning\n"
    assert len(list(read_usage((tmp_path / "a.o.usage").read_text()))) == 2
