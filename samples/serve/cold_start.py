"""Tells how long `doge-export serve` takes from the command to its first 200 of /health: the median of some starts.

python cold_start.py out --precision int8; options behind the folder are those of the command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROUNDS = 7


def start(arguments: list[str]) -> dict[str, float]:
    """Start a server; return the seconds to its first answer, and to its first 200, and of processor time."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "doge_export", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "listening on" not in line:
            raise SystemExit(line.strip())
        seconds: dict[str, float] = {}
        while "ok" not in seconds:
            if time.perf_counter() > began + 60:
                raise SystemExit("the server does not answer")
            try:
                with urllib.request.urlopen(f"{line.split()[-1]}/health", timeout=10):
                    seconds["ok"] = time.perf_counter() - began
                    seconds.setdefault("answers", seconds["ok"])
            except urllib.error.HTTPError:  # it is loading
                seconds.setdefault("answers", time.perf_counter() - began)
                time.sleep(0.005)
            except OSError:  # the port is taken, and not listened on yet
                time.sleep(0.005)
        if sys.platform == "linux":
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds["processor"] = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.communicate()
    return seconds


def main() -> None:
    """Run the command line."""
    if len(sys.argv) < 2:
        raise SystemExit("give an exported folder")
    rounds = [start(sys.argv[1:]) for _ in range(ROUNDS + 1)][1:]  # the first one fills the caches
    print(json.dumps({name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}))


if __name__ == "__main__":
    main()
