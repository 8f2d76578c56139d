"""Which GPUs a build is for: by name, by compute capability, by what is here; and what a library tells of it."""

from __future__ import annotations

import subprocess

import pytest
from click.testing import CliRunner

from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.plugin import architectures as gpus


@pytest.fixture
def smi(monkeypatch, tmp_path):
    """Makes nvidia-smi tell of GPUs of these compute capabilities."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def tells(*capabilities):
        file = tmp_path / "nvidia-smi"
        file.write_text("#!/bin/sh\n" + "".join(f"echo {each}\n" for each in capabilities))
        file.chmod(0o755)

    return tells


def test_the_4090_is_always_compiled_for_and_so_are_the_gpus_here(smi):
    assert gpus.here() == ()
    assert gpus.default() == ("89",)
    smi("12.0", "9.0", "7.5", "9.0")
    assert gpus.here() == ("75", "90", "120")
    assert gpus.default() == ("89", "90", "120")
    smi("[N/A]", "8.0")
    assert gpus.here() == ("80",)


def test_gpus_are_named_by_name_or_capability():
    assert gpus.named(["rtx4090", "GeForce RTX 5070 Ti"], ["9.0"]) == ("89", "90", "120")
    assert gpus.named([], ["sm_89", "120"]) == ("89", "120")
    for gpu in ("gtx1080", "h100"):
        with pytest.raises(DogeExportError, match=f"--gpu is '{gpu}', expected a card such as rtx4090"):
            gpus.named([gpu])
    for capability in ("ada", "8"):
        with pytest.raises(DogeExportError, match=f"--compute-capability is '{capability}', expected two or three"):
            gpus.named([], [capability])
    for names, capabilities in ((["rtx2080"], []), ([], ["75"])):
        with pytest.raises(DogeExportError, match=r"compute capability 7\.5 is asked for, and the kernels run on 8\.0"):
            gpus.named(names, capabilities)


def test_a_library_tells_which_gpus_it_is_for(tmp_path):
    source, library = tmp_path / "library.c", tmp_path / "library.so"
    source.write_text('const char* doge_architectures(void) { return "89-real 90"; }')
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    assert gpus.held_by(library) == ("89-real", "90")


def test_what_is_no_library_of_ours_is_told(tmp_path):
    (tmp_path / "no.so").write_text("no library")
    with pytest.raises(DogeExportError, match=r"no\.so does not tell which GPUs it is for"):
        gpus.held_by(tmp_path / "no.so")


def test_gpus_are_named_in_one_way_at_a_time():
    command = ["plugin", "build", "--cuda-archs", "89", "--gpu", "rtx4090"]
    result = CliRunner().invoke(main, command, catch_exceptions=False, prog_name="doge-export")
    assert result.exit_code == 2
    assert "--cuda-archs names GPUs already" in result.stderr
