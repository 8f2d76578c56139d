"""A library under another name, as TensorRT for RTX's parser needs it: in processes of their own."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tensorrt_on_cpu import in_a_process

from doge_export.errors import DogeExportError
from doge_export.runtime.engine.library_name import _MACHINES, forwarder, make_known_as

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _MACHINES, reason="for Linux on x86_64 and aarch64"
)


def found_as(name, loaded):
    """Whether the name was found before, whether a function is then found by it, and the rights of the stack."""
    try:
        ctypes.CDLL(name)
        before = True
    except OSError:
        before = False
    library = ctypes.CDLL(loaded)
    make_known_as(name, loaded)
    found, real = (ctypes.cast(each.sqrt, ctypes.c_void_p).value for each in (ctypes.CDLL(name), library))
    stack = next(line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if "[stack]" in line)
    return before, found == real, stack


def test_a_loaded_library_is_found_by_another_name():
    found, _ = in_a_process(found_as, "libnot_a_name_of_any_library.so", "libm.so.6")
    assert found == [False, True, "rw-p"]  # newer loaders refuse a library that wants an executable stack


def test_what_lies_on_the_path_under_the_name_is_not_taken():
    """A library of glibc that nothing loads."""
    found, _ = in_a_process(made_known, "libBrokenLocale.so.1", "libm.so.6")
    assert found is True


def made_known(name, loaded):
    library = ctypes.CDLL(loaded)
    make_known_as(name, loaded)
    found, real = (ctypes.cast(each.sqrt, ctypes.c_void_p).value for each in (ctypes.CDLL(name), library))
    return found == real


def test_a_library_that_cannot_be_written_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(DogeExportError, match=r"libm\.so\.6 cannot be made known as libnot_there\.so") as error:
        make_known_as("libnot_there.so", "libm.so.6")
    assert "\n" not in str(error.value)


def test_a_name_that_is_found_already_stays(monkeypatch):
    monkeypatch.setattr("doge_export.runtime.engine.library_name.forwarder", None)
    make_known_as("libm.so.6", "libc.so.6")


def test_the_file_is_one_that_tools_read(tmp_path):
    """As the linker's own would be, for what a loader looks at."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    file = tmp_path / "libalias.so"
    file.write_bytes(forwarder("libalias.so", "libm.so.6", _MACHINES[platform.machine()]))
    shown = subprocess.run([readelf, "-hldW", file], capture_output=True, text=True, check=True)
    assert "Shared library: [libm.so.6]" in shown.stdout and "Library soname: [libalias.so]" in shown.stdout
    (segment,) = (line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["LOAD"])
    assert int(segment[-1], 16) == 0x10000  # the largest page of aarch64
    assert shown.stderr == "" and file.stat().st_size < 1024
