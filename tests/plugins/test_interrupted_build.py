"""An interrupted build takes its compilers along, whoever is sent the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

CMAKE = """#!/bin/sh
# Like cmake --build: it does not end by a signal while its compilers run.
trap : TERM INT
case "$1" in
    --version) echo cmake version 3.25.1 ;;
    --build) sh -c 'touch "$TMPDIR/left"; echo $$ > "$STARTED"; exec sleep 60' ;;
esac
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the plugin is built on Linux only")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command_alone(tmp_path, number, code):
    cmake, started = tmp_path / "cmake", tmp_path / "compiler.pid"
    cmake.write_text(CMAKE)
    cmake.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "doge_export", "plugin", "build", "--no-cuda", "--cmake", str(cmake)],
        env={"PATH": "/usr/bin:/bin", "DOGE_EXPORT_CACHE": str(tmp_path / "cache"), "STARTED": str(started)},
        stderr=subprocess.PIPE,
    )
    try:
        _interrupt(process, number, started)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert [path.suffix for path in (tmp_path / "cache" / "plugins").iterdir()] == [".log"]


def _interrupt(process, number, started):
    while not (started.is_file() and started.read_text().strip()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(timeout=20)
