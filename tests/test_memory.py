"""The peak of a process is its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from doge_export.memory import peak_resident_bytes

LARGE = 300 * 10**6

PEAK = "from doge_export.memory import peak_resident_bytes; print(peak_resident_bytes())"

LARGE_PARENT = f"""
import subprocess, sys
block = b"x" * {LARGE}  # written to, so it is resident
{PEAK}
sys.stdout.flush()
subprocess.run([sys.executable, "-c", {PEAK!r}], check=True)
"""


def peaks(program):
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(line) for line in result.stdout.split()]


def test_what_was_needed_once_counts():
    program = f"block = b'x' * {LARGE}; del block; {PEAK}"
    assert LARGE < peaks(program)[0] < LARGE + 200e6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands a peak down to child processes")
def test_the_peak_is_not_that_of_a_large_parent():
    parent, child = peaks(LARGE_PARENT)
    assert parent > LARGE
    assert 1e6 < child < LARGE / 2


def test_the_peak_of_this_process_never_falls():
    before = peak_resident_bytes()
    block = b"x" * 10**7
    assert peak_resident_bytes() >= before > len(block)
