"""Let a library that is loaded under one name be found under another, without a link on any path.

TensorRT for RTX's parser opens `libtensorrt_rtx.so` when it meets the first plugin node, and its wheel holds
`libtensorrt_rtx.so.1` only: the process then ends without a message. The loader gives a name that is asked for to a
library that is loaded already and calls itself so (DT_SONAME). So an empty library of that name is loaded, which needs
(DT_NEEDED) the real one: whoever opens it finds the real one's functions. It is written by hand, since it is some 300
bytes and a machine may have no compiler, and it is deleted once it is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
import tempfile
from pathlib import Path

from doge_export.errors import DogeExportError

_MACHINES = {"x86_64": 62, "aarch64": 183}
"""e_machine of ELF by what Python calls the machine."""

_HEADER, _PROGRAM_HEADER, _ENTRY, _SYMBOL = 64, 56, 16, 24
"""Bytes of ELF's structures of 64 bits."""
_SHARED_OBJECT, _LOAD, _DYNAMIC, _STACK, _READ_WRITE = 3, 1, 2, 0x6474E551, 6
_LARGEST_PAGE = 0x10000
"""Bytes of a page where it is largest, on some aarch64: the loader refuses a segment that is aligned to less."""
_NULL, _NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 0, 1, 4, 5, 6, 10, 11, 14


def make_known_as(name: str, loaded: str) -> None:
    """Let `dlopen(name)` give the library that this process has loaded as `loaded`.

    Does nothing if this process has a library of that name already, or where libraries are no ELF files of a known
    machine. What lies on the loader's path under that name is not taken: it may be of another version.

    Raises:
        DogeExportError: the library of that name cannot be made or loaded.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
        return
    try:
        with tempfile.TemporaryDirectory(prefix="doge-export-") as folder:
            file = Path(folder) / name
            file.write_bytes(forwarder(name, loaded, _MACHINES[platform.machine()]))
            ctypes.CDLL(str(file))
    except OSError as error:
        raise DogeExportError(
            f"{loaded} cannot be made known as {name}, by which its own parser opens it ({error}): name a folder that "
            "can be written with TMPDIR, or link the one to the other in a folder of LD_LIBRARY_PATH"
        ) from error


def forwarder(name: str, needed: str, machine: int) -> bytes:
    """Return the file of a library without functions that calls itself `name` and needs `needed`."""
    strings = b"\0" + b"".join(text.encode() + b"\0" for text in (name, needed))
    segments = 3
    dynamic = _HEADER + segments * _PROGRAM_HEADER
    entries = 8
    symbols = dynamic + entries * _ENTRY
    hashes = symbols + _SYMBOL
    text = hashes + 5 * 4
    size = text + len(strings)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little-endian
    sizes = (_HEADER, _PROGRAM_HEADER, segments, 64, 0, 0)
    parts = [
        ident + struct.pack("<HHIQQQIHHHHHH", _SHARED_OBJECT, machine, 1, 0, _HEADER, 0, 0, *sizes),
        # Writable: some loaders add the base address to what the dynamic section points to.
        struct.pack("<IIQQQQQQ", _LOAD, _READ_WRITE, 0, 0, 0, size, size, _LARGEST_PAGE),
        struct.pack("<IIQQQQQQ", _DYNAMIC, _READ_WRITE, *[dynamic] * 3, *[entries * _ENTRY] * 2, 8),
        # Without this, the loader takes the library for one that needs an executable stack, which newer ones refuse.
        struct.pack("<IIQQQQQQ", _STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16),
        *(
            struct.pack("<QQ", tag, value)
            for tag, value in (
                (_SONAME, 1),
                (_NEEDED, 2 + len(name.encode())),
                (_STRTAB, text),
                (_STRSZ, len(strings)),
                (_SYMTAB, symbols),
                (_SYMENT, _SYMBOL),
                (_HASH, hashes),
                (_NULL, 0),
            )
        ),
        bytes(_SYMBOL),  # the one symbol that every table begins with
        struct.pack("<IIIII", 1, 1, 0, 0, 0),  # a hash table of one empty bucket
        strings,
    ]
    return b"".join(parts)
