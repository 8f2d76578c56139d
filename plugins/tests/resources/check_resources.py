"""Holds what ptxas says of each kernel to the limits of a file.

check_resources.py LIMITS.toml OBJECT;OBJECT...

Reads OBJECT.usage of each (see record_usage.sh): the output of `ptxas -v` for one or several architectures. Every
kernel needs a table of limits, and every table a kernel. Exit code 0: all within limits; 1: not; 77: nothing was
compiled for the architectures that the limits are for.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED = 77
MEASURES = ("registers", "stack_bytes", "spill_bytes", "shared_bytes")


@dataclass(frozen=True)
class Usage:
    """What one instantiation of a kernel takes on one architecture."""

    kernel: str  # the function's name, without namespaces and template arguments
    entry: str  # the mangled name
    architecture: str  # such as "sm_89"
    registers: int  # of a thread
    stack_bytes: int  # of a thread; local memory that is no spill, such as an array indexed at run time
    spill_bytes: int  # of a thread, the larger one of stores and loads
    shared_bytes: int  # of a block, static


def kernel_name(entry: str) -> str:
    """The last name of a mangled one: `_ZN4doge5cdmoe12cdmoe_decodeIfEEv...` is `cdmoe_decode`."""
    position = 3 if entry.startswith("_ZN") else 2
    name = entry
    while length := re.match(r"\d+", entry[position:]):
        start = position + length.end()
        position = start + int(length.group())
        name = entry[start:position]
    return name


def read_usage(text: str) -> Iterator[Usage]:
    """The kernels in the output of `ptxas -v`."""
    for report in re.split(r"ptxas info\s*: Compiling entry function ", text)[1:]:
        head = re.match(r"'(\S+)' for '(\w+)'", report)
        registers = re.search(r"Used (\d+) registers", report)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        if not head or not registers or not stack:
            raise ValueError(f"not the output of ptxas -v: {report[:200]!r}")
        shared = re.search(r"(\d+) bytes smem", report)
        yield Usage(
            kernel=kernel_name(head[1]),
            entry=head[1],
            architecture=head[2],
            registers=int(registers[1]),
            stack_bytes=int(stack[1]),
            spill_bytes=max(int(stack[2]), int(stack[3])),
            shared_bytes=int(shared[1]) if shared else 0,
        )


def problems(limits: dict[str, dict[str, int]], usages: Iterable[Usage]) -> list[str]:
    """What is beyond the limits {kernel: {measure: most}}, a line each; a measure that is not given may be 0 only."""
    usages = list(usages)
    kernels = {usage.kernel for usage in usages}
    found = [f"{kernel} has no limits" for kernel in sorted(kernels - set(limits))]
    for usage in usages:
        if usage.kernel not in limits:
            continue
        for measure in MEASURES:
            seen, most = getattr(usage, measure), limits[usage.kernel].get(measure, 0)
            if seen > most:
                found.append(f"{usage.kernel} on {usage.architecture}: {seen} {measure}, limit {most} ({usage.entry})")
    return found + [f"{kernel} has limits, but there is no such kernel" for kernel in sorted(set(limits) - kernels)]


def table(usages: Iterable[Usage]) -> str:
    """The most that any instantiation of a kernel takes, a line for each kernel and architecture."""
    worst: dict[tuple[str, str], list[int]] = {}
    for usage in usages:
        row = worst.setdefault((usage.kernel, usage.architecture), [0] * len(MEASURES))
        worst[usage.kernel, usage.architecture] = [
            max(a, getattr(usage, m)) for a, m in zip(row, MEASURES, strict=True)
        ]
    lines = [f"{'kernel':<28}{'on':<8}" + "".join(f"{measure:>14}" for measure in MEASURES)]
    lines += [f"{name:<28}{on:<8}" + "".join(f"{n:>14}" for n in row) for (name, on), row in sorted(worst.items())]
    return "\n".join(lines)


def main(limits_file: str, objects: str) -> int:
    """Prints a table and what is beyond the limits; returns the exit code."""
    settings = tomllib.loads(Path(limits_file).read_text())
    usages = [u for name in objects.split(";") for u in read_usage(Path(name + ".usage").read_text())]
    usages = [u for u in usages if u.architecture in settings["architectures"]]
    if not usages:
        print(f"skipped: nothing was compiled for {' or '.join(settings['architectures'])}")
        return SKIPPED
    print(table(usages))
    found = problems(settings["kernels"], usages)
    print("\n".join(found) if found else "all within limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
