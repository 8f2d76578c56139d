"""The C interface of the native decoder stack by ctypes; plugins/cpu/include/doge/cpu.h defines every name here."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np

from doge_export.errors import DogeExportError, RunFailed

INTERFACE = 3
"""Number of the functions and structs below; a library of another number is not called."""

_MESSAGE_BYTES = 512


class Status(enum.IntEnum):
    """Result of a call."""

    SUCCESS = 0
    BAD_FILE = 1
    UNSUPPORTED = 2
    BAD_ARGUMENT = 3
    TOO_LONG = 4
    NO_MEMORY = 5


class Kind(enum.IntEnum):
    """Type of numbers."""

    INT4 = 4
    INT8 = 8
    FLOAT16 = 16
    BFLOAT16 = 17
    FLOAT32 = 32


class Role(enum.IntEnum):
    """Place of a piece in the model."""

    EMBEDDING = 1
    HEAD = 2
    FINAL_NORM = 3
    ROPE = 4
    ROPE_LONG = 5
    INPUT_NORM = 16
    QUERY = 17
    KEY = 18
    VALUE = 19
    QUERY_BIAS = 20
    KEY_BIAS = 21
    VALUE_BIAS = 22
    QUERY_NORM = 23
    KEY_NORM = 24
    SCORE = 25
    SCORE_OF_INPUT = 26
    SCORE_BIAS = 27
    SCORE_A = 28
    OUTPUT = 29
    OUTPUT_BIAS = 30
    INPUT_RESIDUAL = 31
    POST_NORM = 32
    GATE = 33
    UP = 34
    DOWN = 35
    GATE_BIAS = 36
    UP_BIAS = 37
    DOWN_BIAS = 38
    POST_RESIDUAL = 39
    ROUTER = 48
    ROUTER_BIAS = 49
    EXPERT_DOWN = 50
    EXPERT_UP = 51


class Score(enum.IntEnum):
    """What a key's score adds to its logits."""

    EXP = 0
    LINEAR = 1
    NONE = 2


class RopeKind(enum.IntEnum):
    """How the frequencies of RoPE depend on the length."""

    FIXED = 0
    DYNAMIC = 1
    LONGROPE = 2


class MoeKind(enum.IntEnum):
    """Kind of feed-forward layer."""

    DENSE = 0
    PER_TOKEN = 1
    REFERENCE = 2


class Config(ctypes.Structure):
    """What the model is."""

    _fields_ = (
        *((name, c_int32) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "score_heads", "keep_window_size", "max_length", "score", "rope", "moe",
            "num_experts", "num_experts_per_tok",
        )),
        *((name, c_float) for name in ("rms_norm_eps", "rope_attention_factor", "rope_theta", "rope_factor")),
        ("rope_trained_length", c_int32),
        ("rope_max_positions", c_int32),
        ("reserved", c_int32 * 11),
    )  # fmt: skip


class Piece(ctypes.Structure):
    """A piece of a weight file."""

    _fields_ = (
        *((name, c_int32) for name in (
            "role", "layer", "first_row", "rows", "columns", "kind", "block", "reserved",
        )),
        ("offset", c_uint64),
        ("bytes", c_uint64),
    )  # fmt: skip


class Header(ctypes.Structure):
    """The beginning of a weight file."""

    _fields_ = (
        ("magic", ctypes.c_char * 8),
        ("layout", c_uint32),
        ("piece_count", c_uint32),
        ("file_bytes", c_uint64),
        ("checksum", c_uint64),
        ("source", c_uint8 * 32),
        ("config", Config),
    )


class Call(ctypes.Structure):
    """One run: new tokens, and what is wanted of them."""

    _fields_ = (
        ("tokens", c_int32),
        ("logits_to_keep", c_int32),
        ("ids", c_void_p),
        ("mask", c_void_p),
        ("positions", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
        ("num_candidates", c_int32),
        ("reserved", c_int32),
        ("candidates", c_void_p),
        ("candidate_logits", c_void_p),
    )


class OtherVersion(DogeExportError):
    """A library is none of this version's."""


class NativeError(DogeExportError):
    """A call of the library failed; `status` says how."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def failing_weights() -> Iterator[None]:
    """Turn an error of weights that are found wrong while they are used into one line.

    Raises:
        RunFailed: they are.
    """
    try:
        yield
    except NativeError as error:
        if error.status == Status.BAD_FILE:
            raise RunFailed(f"the native decoder fails on these weights ({error}); use --backend graph") from error
        raise


class NativeLibrary:
    """The functions of a library.

    Args:
        path: the library's file.

    Raises:
        OtherVersion: it is no such library, or one with another interface.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._c = ctypes.CDLL(str(path))
            self._c.doge_cpu_interface.restype = c_int32
            found = self._c.doge_cpu_interface()
            if found == INTERFACE:
                self._declare()
        except (OSError, AttributeError) as error:
            raise OtherVersion(
                f"{path} is no library of the native decoder ({error}): `doge-export plugin build --cpu` makes one"
            ) from error
        if found != INTERFACE:
            raise OtherVersion(
                f"{path} has interface {found}, this doge-export calls {INTERFACE}: `doge-export plugin build --cpu` "
                "makes it anew"
            )
        self.layout: int = self._c.doge_cpu_layout()

    def _declare(self) -> None:
        told = (c_char_p, c_size_t)
        signatures: dict[str, tuple[object, Sequence[object]]] = {
            "layout": (c_int32, ()),
            "instruction_sets": (c_char_p, ()),
            "usable_instruction_sets": (c_char_p, ()),
            "plan": (c_uint64, (POINTER(Config), POINTER(Piece), c_uint32, *told)),
            "write_header": (
                c_int32, (POINTER(Config), POINTER(Piece), c_uint32, c_char_p, c_void_p, c_uint64, *told)
            ),
            "pack": (c_int32, (POINTER(Piece), c_void_p, c_void_p, c_void_p, c_void_p, *told)),
            "open": (c_int32, (c_void_p, c_uint64, c_int32, c_char_p, c_uint32, POINTER(c_void_p), *told)),
            "screen": (c_int32, (c_void_p, *told)),
            "close": (None, (c_void_p,)),
            "model_header": (POINTER(Header), (c_void_p,)),
            "model_instruction_set": (c_char_p, (c_void_p,)),
            "model_threads": (c_int32, (c_void_p,)),
            "state_create": (c_int32, (c_void_p, c_int32, c_int32, c_int32, POINTER(c_void_p), *told)),
            "state_destroy": (None, (c_void_p,)),
            "state_length": (c_int32, (c_void_p,)),
            "state_bytes": (c_uint64, (c_void_p,)),
            "state_rewind": (c_int32, (c_void_p, c_int32, *told)),
            "state_copy": (c_int32, (c_void_p, c_int32, c_void_p, c_void_p, *told)),
            "state_window": (c_int32, (c_void_p, c_int32, *told)),
            "state_bound": (c_int32, (c_void_p, *told)),
            "state_slots": (c_int32, (c_void_p,)),
            "state_saved_bytes": (c_uint64, (c_void_p,)),
            "state_save": (c_int32, (c_void_p, c_void_p, c_uint64, *told)),
            "state_load": (c_int32, (c_void_p, c_void_p, c_uint64, *told)),
            "run": (c_int32, (c_void_p, POINTER(Call), *told)),
            "run_together": (c_int32, (POINTER(c_void_p), POINTER(Call), c_int32, *told)),
        }  # fmt: skip
        for name, (result, arguments) in signatures.items():
            function = getattr(self._c, f"doge_cpu_{name}")
            function.restype, function.argtypes = result, arguments

    @property
    def instruction_sets(self) -> list[str]:
        """Instruction sets that the library has, in ascending order of preference."""
        return self._c.doge_cpu_instruction_sets().decode().split()

    @property
    def usable_instruction_sets(self) -> list[str]:
        """Those of them that this processor has; the last is taken."""
        return self._c.doge_cpu_usable_instruction_sets().decode().split()

    def plan(self, config: Config, pieces: ctypes.Array[Piece]) -> int:
        """Lay a weight file out: set the places of its pieces, and return its size in bytes."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        size = self._c.doge_cpu_plan(byref(config), pieces, len(pieces), message, _MESSAGE_BYTES)
        if size == 0:
            raise NativeError(Status.UNSUPPORTED, _text(message))
        return int(size)

    def write_header(self, config: Config, pieces: ctypes.Array[Piece], source: bytes, file: np.ndarray) -> None:
        """Write header and pieces of a planned file; `source` is the sha256 of what it is made from."""
        self._call(
            "write_header", byref(config), pieces, len(pieces), source.ljust(32, b"\0"), file.ctypes.data, file.nbytes
        )

    def pack(
        self,
        piece: Piece,
        out: np.ndarray,
        *,
        values: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        scales: np.ndarray | None = None,
    ) -> None:
        """Pack the weights of a planned piece into its bytes; arrays are contiguous."""
        arrays = (None if array is None else array.ctypes.data for array in (values, codes, scales))
        self._call("pack", byref(piece), *arrays, out.ctypes.data)

    def open(self, file: np.ndarray, threads: int, instruction_set: str | None = None, flags: int = 0) -> NativeModel:
        """Open a weight file in memory, uint8 [bytes], which must stay as it is while the model lives."""
        return NativeModel(self, file, threads, instruction_set, flags)

    def _call(self, function: str, *arguments: object) -> None:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = getattr(self._c, f"doge_cpu_{function}")(*arguments, message, _MESSAGE_BYTES)
        if status == Status.NO_MEMORY:
            raise RunFailed(f"there is not enough memory: {_text(message)}")
        if status != Status.SUCCESS:
            raise NativeError(status, _text(message))


class NativeModel:
    """Opened weights, with threads of their own; it lives as long as a decoder uses it.

    A forked process has none of the threads, and waiting for them never ends. There the handle is left alone, and
    `state` opens the weights again.
    """

    def __init__(
        self, library: NativeLibrary, file: np.ndarray, threads: int, instruction_set: str | None, flags: int
    ) -> None:
        self.library, self._file = library, file
        self._settings = threads, None if instruction_set is None else instruction_set.encode(), flags
        self._open()
        c = library._c
        self.header = Header.from_buffer_copy(c.doge_cpu_model_header(self._handle).contents)
        self.config: Config = self.header.config
        self.instruction_set: str = c.doge_cpu_model_instruction_set(self._handle).decode()
        self.threads: int = c.doge_cpu_model_threads(self._handle)

    @property
    def described(self) -> str:
        """What computes, in words: "native decoder, avx2, 2 threads"."""
        return f"native decoder, {self.instruction_set}, {self.threads} thread" + "s" * (self.threads > 1)

    def _open(self) -> None:
        handle = c_void_p()
        self.library._call("open", self._file.ctypes.data, self._file.nbytes, *self._settings, byref(handle))
        self._handle, self._process = handle, os.getpid()

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():
            self.library._c.doge_cpu_close(self._handle)

    def screen(self) -> None:
        """Make an int8 copy of a float head, by which the best tokens are found in less time; once is enough."""
        self.library._call("screen", self._handle)

    def state(
        self, batch: int, cache: Kind, max_length: int, *, bounded: bool = False, window: int | None = None
    ) -> NativeState:
        """Return empty caches for sequences of `batch` rows.

        Args:
            batch: number of rows.
            cache: type of cached keys and values.
            max_length: most tokens of a row.
            bounded: drop keys that no later token may see.
            window: keys that a token sees, fewer than the model's keep_window_size; None for that.
        """
        if self._process != os.getpid():
            self._open()
        handle = c_void_p()
        self.library._call("state_create", self._handle, batch, int(cache), max_length, byref(handle))
        state = NativeState(self, handle, batch)
        if window is not None:
            self.library._call("state_window", handle, window)
        if bounded:
            self.library._call("state_bound", handle)
        return state


class NativeState:
    """The caches of a batch of sequences."""

    def __init__(self, model: NativeModel, handle: c_void_p, batch: int) -> None:
        self.model, self._handle, self.batch = model, handle, batch
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process == os.getpid():
            self.model.library._c.doge_cpu_state_destroy(self._handle)

    @property
    def length(self) -> int:
        """Tokens that a row holds."""
        return int(self.model.library._c.doge_cpu_state_length(self._handle))

    @property
    def slots(self) -> int:
        """Keys that each layer and head holds: as many, or fewer where bounded caches have dropped some."""
        return int(self.model.library._c.doge_cpu_state_slots(self._handle))

    @property
    def bytes(self) -> int:
        """Memory of the caches now."""
        return int(self.model.library._c.doge_cpu_state_bytes(self._handle))

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens."""
        self.model.library._call("state_rewind", self._handle, length)

    def cache(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return a copy of the keys and values of every layer, each float32 [B, Hkv, slots, D]."""
        config = self.model.config
        shape = (self.batch, config.num_key_value_heads, self.slots, config.head_dim)
        copied = [(np.empty(shape, np.float32), np.empty(shape, np.float32)) for _ in range(config.num_hidden_layers)]
        for layer, (keys, values) in enumerate(copied):
            self.model.library._call("state_copy", self._handle, layer, keys.ctypes.data, values.ctypes.data)
        return copied

    def content(self) -> np.ndarray:
        """Return a copy of all that the caches hold, uint8, for `restore`."""
        size = self.model.library._c.doge_cpu_state_saved_bytes(self._handle)
        content = np.empty(size, np.uint8)
        self.model.library._call("state_save", self._handle, content.ctypes.data, size)
        return content

    def restore(self, content: np.ndarray) -> None:
        """Replace what the caches hold by the content, uint8 and contiguous, of another state."""
        self.model.library._call("state_load", self._handle, content.ctypes.data, content.nbytes)

    def run(self, call: Call) -> None:
        """Read new tokens."""
        self.model.library._call("run", self._handle, byref(call))

    @staticmethod
    def run_together(states: Sequence[NativeState], calls: Sequence[Call]) -> None:
        """Read new tokens of several states of one model in one pass over its weights, or after an error of none."""
        handles = (c_void_p * len(states))(*(state._handle for state in states))
        states[0].model.library._call("run_together", handles, (Call * len(calls))(*calls), len(states))


def _text(message: ctypes.Array[ctypes.c_char]) -> str:
    return message.value.decode(errors="replace")
