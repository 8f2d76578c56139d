"""Systems that the native decoder is compiled for: how zig names them, what the library is called, what a wheel is."""

from __future__ import annotations

import dataclasses
import platform
import struct
import sys
import sysconfig

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclasses.dataclass(frozen=True)
class CpuTarget:
    """A system.

    Attributes:
        name: on the command line.
        file: name of the library there.
        triples: processor and zig's name of the system, one for each processor that the library is for.
        wheel: platform tag of a wheel with that library.
    """

    name: str
    file: str
    triples: tuple[tuple[str, str], ...]
    wheel: str


CPU_TARGETS = {
    target.name: target
    for target in (
        CpuTarget(
            "x86_64-linux", "libdoge_cpu.so", (("x86_64", "x86_64-linux-gnu.2.17"),),
            "manylinux_2_17_x86_64.manylinux2014_x86_64",
        ),
        CpuTarget(
            "aarch64-linux", "libdoge_cpu.so", (("aarch64", "aarch64-linux-gnu.2.17"),),
            "manylinux_2_17_aarch64.manylinux2014_aarch64",
        ),
        CpuTarget(
            "macos", "libdoge_cpu.dylib", (("x86_64", "x86_64-macos.11.0"), ("aarch64", "aarch64-macos.11.0")),
            "macosx_11_0_universal2",
        ),
        CpuTarget("windows", "doge_cpu.dll", (("x86_64", "x86_64-windows-gnu"),), "win_amd64"),
    )
}  # fmt: skip
"""What zig compiles for from any system."""


def library_name() -> str:
    """Return what the library is called on this system."""
    return {"darwin": "libdoge_cpu.dylib", "win32": "doge_cpu.dll"}.get(sys.platform, "libdoge_cpu.so")


def machine() -> str:
    """Return this processor's kind, such as x86_64 or aarch64."""
    found = platform.machine().lower()
    return _MACHINES.get(found, found)


def wheel_tag() -> str:
    """Return the platform tag of a wheel with a library that this system's own compiler made for it alone."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def universal(binaries: dict[str, bytes]) -> bytes:
    """Join Mach-O libraries of several processors to one file: a table of (processor, place, size), then each.

    Numbers are big-endian; each library begins at a multiple of 2^14 bytes, the page of Apple's processors.
    """
    kinds = {"x86_64": (0x01000007, 3), "aarch64": (0x0100000C, 0)}
    page = 14
    table, body, at = struct.pack(">II", 0xCAFEBABE, len(binaries)), b"", 8 + 20 * len(binaries)
    for processor, content in binaries.items():
        gap = -(at + len(body)) % 2**page
        body += bytes(gap)
        table += struct.pack(">5I", *kinds[processor], at + len(body), len(content), page)
        body += content
    return table + body
