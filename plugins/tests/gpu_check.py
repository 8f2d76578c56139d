"""Everything about the kernels that needs a GPU, in one run: are they right, are they clean, are they fast.

    python plugins/tests/gpu_check.py [--json FILE] [--budget SECONDS]

Builds the libraries and test programs for the GPU that is here; tries the engine's device layer on real CUDA; compares
every kernel with the C++ reference in every type, and large sizes with float64; replays decoding from a captured graph;
runs the test programs, and the small one under compute-sanitizer; times the kernels beside PyTorch's attention, and
profiles one by ncu. Prints a table, and which kernels never ran. Exit code 0: everything is right (bars of speed that
are missed are told, and do not count); 1: something is wrong; 2: there is no GPU or no nvcc.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))
if (_HERE.parents[1] / "doge_export").is_dir():  # a checkout; otherwise doge_export is installed
    sys.path.insert(0, str(_HERE.parents[1]))

import torch

if not torch.cuda.is_available():
    print("gpu_check: there is no GPU here that PyTorch can use; run this on a machine with one")
    sys.exit(2)

import gpu_correctness
import gpu_timing
from fused_cases import all_fused_checks
from gpu_correctness import Libraries
from gpu_timing import Timing
from kernel_names import kernels_of, short_name

from doge_export.errors import DogeExportError
from doge_export.plugin.build import KERNELS
from doge_export.plugin.compiling import CompileSettings, compile_plugin
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.sources import plugin_sources
from doge_export.plugin.toolchain import find_toolchain
from doge_export.runtime.engine.device import Device

DECODE_LENGTHS = (8192, 1024, 2048)
"""The one that decides first: there the cache is beyond what launches cost."""
FLEX_AT = (8192,)
"""Where flex_attention is compared: it compiles for each size, and decides at lengths where memory is the bound."""
PROGRAMS = ("gpu_kernels", "trt_gpu")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One thing that was tried: "ok", "failed" or "skipped", and a line about it."""

    name: str
    state: str
    detail: str = ""


class Report:
    """What was found so far, and how much of the time is left."""

    def __init__(self, budget: float) -> None:
        self.deadline = time.monotonic() + budget
        self.outcomes: list[Outcome] = []
        self.timings: list[Timing] = []
        self.copy_bandwidth = 0.0

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def add(self, name: str, state: str, detail: str = "") -> None:
        """Notes an outcome; what is not ok is printed at once."""
        self.outcomes.append(Outcome(name, state, detail))
        if state != "ok":
            print(f"{state}: {name}  {detail}", flush=True)

    def attempt(self, name: str, work: Callable[[], object], *, seconds: float = 5) -> None:
        """Runs `work`, if about `seconds` are left. An error is an outcome, not the end."""
        if self.left() < seconds:
            self.add(name, "skipped", "out of time")
            return
        try:
            work()
        except Exception as problem:
            traceback.print_exc()
            self.add(name, "failed", f"{type(problem).__name__}: {problem}")


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    started = time.monotonic()
    report = Report(arguments.budget)
    major, minor = torch.cuda.get_device_capability()
    print(f"{torch.cuda.get_device_name()}  sm_{major}{minor}  torch {torch.__version__}", flush=True)
    tree = Path(tempfile.mkdtemp(prefix="doge-gpu-check-"))
    try:
        compile_here(tree, f"{major}{minor}", arguments)
        report.add("compiled", "ok", f"{time.monotonic() - started:.0f} s")
        library = KernelLibrary(tree / "lib" / KERNELS)
        report.attempt("device layer", lambda: check_device(report), seconds=20)
        ran = KernelNames()
        with ran.recorded():
            report.attempt("correctness", lambda: check_all(report, library))
        tell_never_ran(report, tree / "lib" / KERNELS, ran.names)
        for program in PROGRAMS:
            run_program(report, program, [str(tree / "bin" / program), *_program_arguments(program, tree)], tree)
        for tool in ("memcheck", "racecheck"):
            sanitize(report, tool, tree / "bin" / "gpu_kernels")
        profile(report, tree / "bin" / "gpu_kernels")
        report.attempt("copy bandwidth", lambda: setattr(report, "copy_bandwidth", gpu_timing.copy_bandwidth()))
        time_all(report, library)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    facts = to_dict(report, time.monotonic() - started)
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if any(outcome.state == "failed" for outcome in report.outcomes) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--budget", type=float, default=450, metavar="SECONDS", help="Stop starting things by then.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all that was found.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="Compilers at a time.")
    return parser.parse_args()


def compile_here(tree: Path, architecture: str, arguments: argparse.Namespace) -> None:
    """Libraries and the programs that need a GPU, for it alone."""
    toolchain = find_toolchain()
    toolchain.require_compiler()
    if toolchain.nvcc.missing:
        raise DogeExportError(toolchain.nvcc.missing)
    settings = CompileSettings((f"{architecture}-real",), tests=True)
    targets = ["doge_kernels_c", "gpu_kernels", "doge_trt_plugin", "trt_gpu"]
    log = tree / "compile.log"
    compile_plugin(plugin_sources(), tree, settings, toolchain, jobs=arguments.jobs, log=log, targets=targets)


def check_all(report: Report, library: KernelLibrary) -> None:
    """Every comparison of fused_cases and gpu_correctness, those of what engines call first."""
    libraries = Libraries(library, library)
    for check in itertools.chain(all_fused_checks(libraries, "cuda"), gpu_correctness.all_checks(libraries)):
        detail = f"error {check.error:.2e}, at most {check.limit:.1e} {check.note}".rstrip()
        report.add(check.name, "ok" if check.passed else "failed", detail)
        if report.left() < 200:
            report.add("further comparisons", "skipped", "out of time")
            return


def check_device(report: Report) -> None:
    """The layer under engines, on real CUDA: zeros, pinned copies both ways, and a graph that is replayed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        report.add("device layer", "skipped", "cuda-bindings is not installed")
        return
    device = Device(runtime)
    try:
        sent, received = device.pinned(1 << 20), device.pinned(1 << 20)
        first, second = device.allocate(sent.nbytes), device.allocate(sent.nbytes)
        received[...] = 1
        device.download(received, first)
        device.synchronize()
        zeros = not received.any()

        def copies() -> None:
            device.upload(first, sent)
            device._call(
                "cudaMemcpyAsync",
                *(second, first, sent.nbytes, runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice, device.stream),
            )
            device.download(received, second)

        recorded = device.record(copies)
        waits = not received.any()  # a capture runs nothing
        replayed = []
        for number in range(1, 4):  # the graph reads what stands in pinned memory at each replay
            sent[...] = number
            recorded.launch()
            device.synchronize()
            replayed.append(bool((received == number).all()))
        recorded.close()
        other = device.fork()
        other.allocate(256)
        other.synchronize()
        other.close()
        good = zeros and waits and all(replayed)
        detail = f"{device.name}: zeros {zeros}, capture runs nothing {waits}, replays {replayed}"
        report.add("device layer", "ok" if good else "failed", detail)
    finally:
        device.close()


class KernelNames:
    """Mangled names of the kernels that ran, as PyTorch's profiler sees them."""

    def __init__(self) -> None:
        self.names: set[str] | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what runs meanwhile; without a working profiler `names` stays None."""
        activity = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activity.CUDA]) as profiler:
            yield
        names = {event.key for event in profiler.key_averages()}
        if names:
            self.names = names


def tell_never_ran(report: Report, library: Path, ran: set[str] | None) -> None:
    """Which of the library's kernels none of the comparisons ran."""
    name = "kernels that never ran"
    if ran is None:
        report.add(name, "skipped", "PyTorch's profiler saw no kernel")
        return
    never = sorted(kernels_of(library) - {short_name(entry) for entry in ran})
    report.add(name, "failed" if never else "ok", "; ".join(never) or "none")
    print(f"{name}: {'; '.join(never) or 'none'}", flush=True)


def profile(report: Report, program: Path) -> None:
    """One line of ncu about decoding: what of the memory's bandwidth it reaches, and what of the registers it takes."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not Path(ncu).is_file() or report.left() < 120:
        report.add("ncu", "skipped", "out of time" if Path(ncu).is_file() else "ncu is not installed")
        return
    metrics = (
        "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
        "sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread"
    )
    command = [ncu, "--csv", "--metrics", metrics, "-k", "regex:decode_kernel", "-c", "1", str(program)]
    done = _run(command, 60)
    rows = [line.split('","') for line in done.stdout.splitlines() if line.startswith('"') and "decode_kernel" in line]
    values = "  ".join(f"{row[-3]} {row[-1].rstrip(chr(34))} {row[-2]}" for row in rows)
    # Whether a user may read the counters is the driver's setting: no mistake of ours.
    report.add("ncu", "ok" if rows else "skipped", values or done.stdout.strip()[-200:])
    print(f"ncu: {values}" if rows else "", flush=True)


def _program_arguments(program: str, tree: Path) -> list[str]:
    return [str(tree / "lib" / "libdoge_trt_plugin.so")] if program == "trt_gpu" else []


def run_program(report: Report, name: str, command: list[str], tree: Path) -> None:
    """A test program as ctest runs it: 0 is passed, 77 skipped."""
    if not Path(command[0]).is_file():
        report.add(name, "skipped", "not built")
        return
    done = _run(command, min(120, report.left()))
    state = {0: "ok", 77: "skipped"}.get(done.returncode, "failed")
    bad = [line for line in done.stdout.splitlines() if "FAILED" in line or "failed" in line]
    report.add(name, state, "; ".join(bad[:5]) or (done.stdout.strip().splitlines() or [""])[-1])


def sanitize(report: Report, tool: str, program: Path) -> None:
    """The small program under compute-sanitizer."""
    name = f"compute-sanitizer {tool}"
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).is_file():
        report.add(name, "skipped", "compute-sanitizer is not installed")
    elif report.left() < 150:
        report.add(name, "skipped", "out of time")
    else:
        done = _run([sanitizer, "--tool", tool, "--error-exitcode", "9", str(program)], 60)
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line or "Device not supported" in line]
        unable = "Device not supported" in done.stdout or done.returncode == 124
        state = "ok" if done.returncode == 0 else "skipped" if unable else "failed"
        report.add(name, state, " ".join(summary) or ("took too long" if unable else done.stdout[-300:]))


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """The command; exit code 124 where it takes longer."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=max(seconds, 1), check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return subprocess.CompletedProcess(command, 124, said)


def time_all(report: Report, library: KernelLibrary) -> None:
    """The points of the table, the dearest comparisons (flex is compiled for each) while time is left."""

    def note(measure: Callable[[], Timing]) -> Callable[[], None]:
        return lambda: report.timings.append(measure())

    def attempt_decode(heads: int, kv_heads: int, batch: int, length: int) -> None:
        flex = length in FLEX_AT and report.left() > 90
        measure = note(lambda: gpu_timing.decode(library, heads, kv_heads, batch, length, flex=flex))
        report.attempt(f"decode {heads}/{kv_heads} B {batch} T {length}", measure, seconds=15)
        torch.cuda.empty_cache()

    for length in DECODE_LENGTHS:
        for heads, kv_heads in reversed(gpu_timing.HEADS):
            attempt_decode(heads, kv_heads, 1, length)
    attempt_decode(8, 4, 16, 8192)
    for heads, kv_heads in ((8, 4), (2, 1)):
        point = f"prefill {heads}/{kv_heads} T 2048"
        measure = note(lambda h=heads, k=kv_heads: gpu_timing.prefill(library, h, k, 2048, flex=report.left() > 90))
        report.attempt(point, measure, seconds=20)
    for tokens in (1, 4, 16, 256, 300):
        report.attempt(f"cdmoe tokens {tokens}", note(lambda n=tokens: gpu_timing.cdmoe(library, n)), seconds=8)
    for tokens in (1, 16):
        report.attempt(f"projections tokens {tokens}", note(lambda n=tokens: gpu_timing.projections(n, 8, 4)))


def bars(report: Report) -> Iterator[tuple[str, bool]]:
    """What the kernels are meant to reach, and whether they do."""
    for timing in report.timings:
        kind = timing.name.split()[0]
        share, speedup = timing.bandwidth() / (report.copy_bandwidth or 1), timing.speedup()
        if kind == "decode":
            if timing.bytes_moved >= 2**25:  # below, a launch costs more than the memory
                yield f"{timing.name}: {share:.0%} of copy bandwidth, 70 % wanted", share >= 0.7
            if speedup is not None:
                yield f"{timing.name}: {speedup:.2f}x the fastest of PyTorch, more than 1 wanted", speedup > 1
            if timing.selecting is not None:
                ratio = timing.selecting / timing.seconds
                yield f"{timing.name}: {ratio:.2f}x the time with selection, at most 1.15 wanted", ratio <= 1.15
        elif kind == "prefill" and speedup is not None:
            yield f"{timing.name}: {speedup:.2f}x the fastest of PyTorch, 1 wanted", speedup >= 1
        elif kind == "cdmoe" and int(timing.name.split()[-1]) <= 16:
            yield f"{timing.name}: {share:.0%} of copy bandwidth, 60 % wanted", share >= 0.6
            if speedup is not None:
                yield f"{timing.name}: {speedup:.1f}x PyTorch's formulation, 5 wanted", speedup >= 5


def table(report: Report) -> str:
    """For people."""
    lines = ["", f"copy bandwidth {report.copy_bandwidth / 1e9:.0f} GB/s (read and written)"]
    lines += [f"{'point':32}{'us':>10}{'GB/s':>9}{'of copy':>9}{'selecting':>11}  others, us"]
    for timing in report.timings:
        others = "  ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in timing.rivals.items())
        selecting = f"{timing.selecting * 1e6:.1f}" if timing.selecting else ""
        bandwidth = timing.bandwidth()
        share = f"{bandwidth / report.copy_bandwidth:.0%}" if report.copy_bandwidth else ""
        lines.append(
            f"{timing.name:32}{timing.seconds * 1e6:10.1f}{bandwidth / 1e9:9.0f}{share:>9}{selecting:>11}  {others}"
        )
        lines += [f"    {note}" for note in timing.notes]
    lines += [f"{'met   ' if met else 'MISSED'}  {text}" for text, met in bars(report)]
    counts = {state: sum(o.state == state for o in report.outcomes) for state in ("ok", "failed", "skipped")}
    lines.append("  ".join(f"{count} {state}" for state, count in counts.items()))
    return "\n".join(lines)


def to_dict(report: Report, seconds: float) -> dict[str, Any]:
    """For JSON."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seconds": round(seconds, 1),
        "copy_bandwidth": report.copy_bandwidth,
        "outcomes": [dataclasses.asdict(outcome) for outcome in report.outcomes],
        "timings": [
            {**dataclasses.asdict(timing), "bandwidth": timing.bandwidth(), "speedup": timing.speedup()}
            for timing in report.timings
        ],
        "bars": [{"bar": text, "met": met} for text, met in bars(report)],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DogeExportError as problem:
        print(f"gpu_check: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
