"""Faults at random moments of every command that writes: the old output or the new one is whole, every time.

    pytest -m slow tests/test_faults.py

DOGE_FAULT_SEED (0) chooses the moments, DOGE_FAULT_MOMENTS (20) their number for each command and fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from task_models import saved

from doge_export import export
from doge_export.package import verify
from doge_export.package.fingerprint import fingerprint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, limits, /proc")]

SEED = int(os.environ.get("DOGE_FAULT_SEED", "0"))
MOMENTS = int(os.environ.get("DOGE_FAULT_MOMENTS", "20"))
FAULTS = ("kill", "interrupt", "terminate", "full disk", "no memory")
TEXT = "Once upon a time there was a little cat. " * 40


class Server:
    """Runs command lines in forks of a process that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fault_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, arguments: list[str], stderr: Path, number: int = 0, after: float = 0.0, **limits: int) -> int:
        """Return the exit code of a command line, negative for a signal; `number` is sent `after` seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "stderr": str(stderr), **limits}) + "\n")
        self.process.stdin.flush()
        pid = int(self._line())
        timer = threading.Timer(after, _send, [pid, number])
        if number:
            timer.start()
        code = os.waitstatus_to_exitcode(int(self._line()))
        timer.cancel()
        return code


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.kill()
    started.process.communicate()


class Subject:
    """A command that writes `out` in a folder of its own.

    Attributes:
        home: folder of the output and of nothing else.
        arguments: of the command line; it replaces the output.
        old: copy of the old output.
        is_new: tells whether an output is the one that the command writes.
    """

    def __init__(self, home: Path, arguments: list[str], old: Path, is_new: Callable[[Path], bool]) -> None:
        self.home, self.arguments, self.old, self.is_new = home, arguments, old, is_new

    @property
    def out(self) -> Path:
        return self.home / self.old.name

    def reset(self) -> None:
        """Bring the old output back and delete everything else."""
        for path in self.home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.old, self.out) if self.old.is_dir() else shutil.copyfile(self.old, self.out)

    def state(self) -> str:
        """Return "old" or "new" for a whole output, and what is wrong for another."""
        if not self.out.exists():
            return "nothing"
        if contents(self.out) == contents(self.old):
            return "old"
        try:
            return "new" if self.is_new(self.out) else "a mixture"
        except Exception as error:
            return f"damaged: {error}"


def contents(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {file.relative_to(path.parent).as_posix(): fingerprint(file).sha256 for file in files}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    from doge_export.pipeline.convert import convert

    folder = tmp_path_factory.mktemp("faults")
    saved("text-generation", folder / "model")
    saved("feature-extraction", folder / "features")
    (folder / "text.txt").write_text(TEXT)
    (folder / "lines.txt").write_text("Once upon a time.\n" * 40)
    (folder / "questions.jsonl").write_text(
        json.dumps({"question": "Who?", "choices": ["cat", "dog"], "answer": 0}) + "\n"
    )
    for name, size in (("onnx", 72), ("quantize", 72), ("features", 72), ("trt", 72)):
        model = folder / ("features" if name == "features" else "model")
        export(model, folder / name / "out", max_length=size, validate=False)
    convert(folder / "model", folder / "convert" / "out")
    (folder / "convert" / "out" / "generation_config.json").unlink(missing_ok=True)  # so that old and new differ
    for name in ("answers.jsonl", "vectors.npy", "speed.png"):
        (folder / name).write_text("old")
    text = ["--precision", "int8", "--eval-text", str(folder / "text.txt"), "--max-kl", "9", "--force"]
    quick = ["--rounds", "1", "--new-tokens", "2", "--prompt-length", "4", "--prefill-length", "8", "--context", "16"]
    native = ["--builder", "rtx", "--attention", "native"]
    made: dict[str, tuple[Path, list[str], Callable[[Path], bool]]] = {
        "onnx": (
            folder / "onnx" / "out",
            ["onnx", str(folder / "model"), "OUT", "--max-length", "64", "--no-validate", "--force"],
            lambda out: verify(out).max_length == 64,
        ),
        "trt": (
            folder / "trt" / "out",
            ["trt", str(folder / "model"), "OUT", "--fp32", *native, "--max-length", "16", "--force"],
            lambda out: verify(out).max_length == 16,
        ),
        "quantize": (
            folder / "quantize" / "out",
            ["quantize", "OUT", *text],
            lambda out: len(verify(out).graphs) == 2,
        ),
        "convert": (
            folder / "convert" / "out",
            ["convert", str(folder / "model"), "OUT", "--force"],
            lambda out: contents(out) == contents(folder / "converted" / "out"),
        ),
        "eval": (
            folder / "answers.jsonl",
            ["eval", str(folder / "onnx" / "out"), "--choices", str(folder / "questions.jsonl"), "--details", "OUT"],
            lambda out: len(out.read_text().splitlines()) == len([*map(json.loads, out.open())]) == 1,
        ),
        "embed": (
            folder / "vectors.npy",
            ["embed", str(folder / "features" / "out"), "--file", str(folder / "lines.txt"), "--output", "OUT"],
            lambda out: np.load(out).ndim == 2,
        ),
        "bench": (
            folder / "speed.png",
            ["bench", str(folder / "onnx" / "out"), *quick, "--plot", "OUT"],
            lambda out: len(Image.open(out).convert("RGB").tobytes()) > 0,
        ),
    }
    convert(folder / "model", folder / "converted" / "out")
    result = {}
    for name, (old, arguments, is_new) in made.items():
        home = folder / "homes" / name
        home.mkdir(parents=True)
        arguments = [str(home / old.name) if argument == "OUT" else argument for argument in arguments]
        result[name] = Subject(home, arguments, old, is_new)
    return result


@contextlib.contextmanager
def nearly_full(home: Path, room: int) -> Iterator[bool]:
    """Put a disk with `room` bytes left over the content of a folder; yields False where none can be mounted."""
    before = home.with_name("before")
    shutil.copytree(home, before)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", home], capture_output=True)
    try:
        if mounted.returncode == 0:
            shutil.copytree(before, home, dirs_exist_ok=True)
            used = shutil.disk_usage(home).used
            subprocess.run(["mount", "-o", f"remount,size={used + room}", home], check=True)
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", home], check=True)
        shutil.rmtree(before)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["onnx", "trt", "quantize", "convert", "eval", "embed", "bench"])
def test_old_or_new(server, subjects, tmp_path, name, fault):
    if name == "trt":
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    subject, dice, seen = subjects[name], random.Random(f"{SEED} {name} {fault}"), Counter[str]()
    errors = tmp_path / "stderr"
    subject.reset()
    began = time.monotonic()
    assert server.run(subject.arguments, errors) == 0, errors.read_text()
    seconds = time.monotonic() - began
    assert subject.state() == "new"
    size = sum(file.stat().st_size for file in subject.home.rglob("*") if file.is_file())
    for moment in range(MOMENTS):
        subject.reset()
        share = dice.random()
        where = f"{name}, {fault}, moment {moment} of seed {SEED}"
        code = _with_fault(server, subject, errors, fault, share, seconds, size, seen, where)
        said = errors.read_text(errors="replace")
        if fault != "kill" and code >= 0:
            assert "Traceback" not in said, f"{where}: {said}"
        if fault in ("interrupt", "terminate"):
            assert code in (0, 130 if fault == "interrupt" else 143), f"{where}: {code}: {said}"
        assert server.run(subject.arguments, errors) == 0, f"{where}: next run: {errors.read_text()}"
        assert subject.state() == "new", where
        assert [path.name for path in subject.home.iterdir()] == [subject.out.name], where
    print(f"{name}, {fault}: {dict(sorted(seen.items()))}")  # noqa: T201 (shown by -s and -rP)


def _with_fault(
    server: Server,
    subject: Subject,
    errors: Path,
    fault: str,
    share: float,
    seconds: float,
    size: int,
    seen: Counter[str],
    where: str,
) -> int:
    """Run a command with a fault; check and count what it leaves."""
    options: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if fault == "full disk":
            # Every second time a limit on each file, which needs no mount.
            if share < 0.5 or not stack.enter_context(nearly_full(subject.home, int(2 * (share - 0.5) * size))):
                options["file_bytes"] = int(2 * share * size)
        elif fault == "no memory":
            options["memory_bytes"] = int(share**3 * 200 * 2**20)  # many sizes
        else:
            number = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}[fault]
            # A fork takes a moment until it runs the command line, whose first act is to handle signals.
            options |= {"number": number, "after": max(0.1, share * seconds)}
        code = server.run(subject.arguments, errors, **options)
        state = subject.state()
        assert state in ("old", "new"), f"{where}: {state}, exit code {code}: {errors.read_text()}"
        assert state == "new" or code != 0, where
        if fault != "kill" and code >= 0:
            assert [path.name for path in subject.home.iterdir()] == [subject.out.name], where
        seen[f"{state}, exit code {code}"] += 1
    return code


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_from_the_first_import_on(subjects, number, expected):
    """In a process of its own, at moments of its start and of its work."""
    subject, dice = subjects["onnx"], random.Random(f"{SEED} start {number}")
    for moment in range(MOMENTS):
        subject.reset()
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "doge_export", *subject.arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stderr is not None
        for line in process.stderr:  # the time of an import is written when it is done
            if line.rstrip().endswith("doge_export.__main__") or "doge_export.version" in line:
                break
        time.sleep(0.02 + dice.random() * 6)
        process.send_signal(number)
        said = process.communicate()[1]
        where = f"moment {moment} of seed {SEED}: {process.returncode}: {said[-2000:]}"
        assert process.returncode in (expected, 0), where
        assert "Traceback" not in said, where
        assert subject.state() in ("old", "new"), where
