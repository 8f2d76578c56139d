"""A process that has imported everything, and runs command lines in forks of itself: a run takes a second, not ten.

Each line of stdin is a request in JSON: "arguments", "stderr" (file), and optionally "file_bytes" and "memory_bytes"
(limits of RLIMIT_FSIZE, and of RLIMIT_AS above what is mapped already). Answers are the process id, then the status of
waitpid, a line each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime
import onnxscript
import safetensors.torch
import tokenizers
import torch

import doge_export.pipeline.convert
import doge_export.pipeline.onnx
import doge_export.pipeline.quantize
from doge_export.__main__ import run

LOADED = (onnx, onnx_ir, onnxruntime, onnxscript, safetensors, tokenizers, torch, doge_export)


def limit(request: dict) -> None:
    """Set the limits of this process."""
    if "file_bytes" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    if "memory_bytes" in request:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + request["memory_bytes"],) * 2)


def child(request: dict) -> None:
    """Run one command line and end the process."""
    code = 1
    try:
        errors = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["doge-export", *request["arguments"]]
        limit(request)
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Answer requests until stdin ends."""
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)  # noqa: T201
        print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
