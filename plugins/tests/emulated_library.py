"""The kernels as tests/emulated runs them on the CPU: nvcc's host code, and its PTX interpreted."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.params import Params

EMULATED = "libdoge_emulated_c.so"
FORWARD, REVERSED, RANDOM = range(3)
"""Orders of threads: see grid.h."""
_GUARD = 256


class EmulatedLibrary(KernelLibrary):
    """Runs the kernels on host tensors.

    The workspace ends exactly where it should. At first it is full of ones; a call that needs as much as an earlier one
    finds what that left.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._workspaces: dict[int, torch.Tensor] = {}
        for name, result, *arguments in (
            ("schedule", None, ctypes.c_int, ctypes.c_uint64),
            ("load", None, ctypes.c_char_p),
            ("unload", None),
            ("ptx", ctypes.c_char_p, ctypes.c_char_p),
            ("launches", ctypes.c_char_p),
            ("error", ctypes.c_char_p),
        ):
            function = getattr(self._c, f"doge_emulation_{name}")
            function.restype, function.argtypes = result, arguments

    def _call(self, params: Params, device: torch.device, workspace: torch.Tensor | None) -> None:
        needed = self._function_of(params, "_workspace_bytes")(params)
        if needed not in self._workspaces:
            self._workspaces[needed] = torch.full((needed + 2 * _GUARD,), 0xFF, dtype=torch.uint8)
        memory = self._workspaces[needed]
        start = -memory.data_ptr() % _GUARD
        try:
            self._launch(params, device, memory[start : start + needed], None)
        except RuntimeError as problem:
            raise RuntimeError(f"{problem}: {self._c.doge_emulation_error().decode()}") from None
        assert (memory[:start] == 0xFF).all()
        assert (memory[start + needed :] == 0xFF).all()

    def forget_workspaces(self) -> None:
        """Begin again with workspaces full of ones."""
        self._workspaces.clear()

    def schedule(self, order: int, seed: int = 1) -> None:
        """Set the order in which threads, warps and blocks run from now on."""
        self._c.doge_emulation_schedule(order, seed)

    def ptx(self, kernel: str) -> str:
        """Return the PTX file that holds a kernel, by a part of its mangled name."""
        text = self._c.doge_emulation_ptx(kernel.encode())
        if text is None:
            raise KeyError(kernel)
        return str(text.decode())

    @contextlib.contextmanager
    def replaced(self, ptx: str) -> Iterator[None]:
        """Run the kernels of another PTX in place of those with the same names."""
        self._c.doge_emulation_load(ptx.encode())
        try:
            yield
        finally:
            self._c.doge_emulation_unload()

    def launches(self) -> dict[str, int]:
        """Return how often each kernel was launched, by mangled name; those that never were included."""
        lines = self._c.doge_emulation_launches().decode().split("\n")
        return {name: int(count) for name, count in (line.split() for line in lines if line)}
