"""The C interface of plugins/cpu by ctypes, and models packed straight from a module's tensors."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import POINTER, c_char, c_char_p, c_float, c_int32, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import torch

from doge_export.checkpoint import Architecture
from doge_export.model import DogeForExport
from doge_export.model.rope import RotaryEmbedding
from doge_export.quantization.blocks import Blocks

Array = np.ndarray
INT4, INT8, FLOAT16, BFLOAT16, FLOAT32 = 4, 8, 16, 17, 32
SUCCESS, BAD_FILE, UNSUPPORTED, BAD_ARGUMENT, TOO_LONG = range(5)
COPY, SCREEN = 1, 2


class Config(ctypes.Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
                *("num_key_value_heads", "head_dim", "score_heads", "keep_window_size", "max_length", "score", "rope"),
                *("moe", "num_experts", "num_experts_per_tok"),
            )
        ),
        *((name, c_float) for name in ["rms_norm_eps", "rope_attention_factor", "rope_theta", "rope_factor"]),
        ("rope_trained_length", c_int32),
        ("rope_max_positions", c_int32),
        ("reserved", c_int32 * 11),
    ]


class Piece(ctypes.Structure):
    _fields_ = [
        *((name, c_int32) for name in ["role", "layer", "first_row", "rows", "columns", "kind", "block", "reserved"]),
        ("offset", c_uint64),
        ("bytes", c_uint64),
    ]


class Header(ctypes.Structure):
    _fields_ = [
        ("magic", c_char * 8),
        ("layout", c_uint32),
        ("piece_count", c_uint32),
        ("file_bytes", c_uint64),
        ("checksum", c_uint64),
        ("source", c_uint8 * 32),
        ("config", Config),
    ]


class Call(ctypes.Structure):
    _fields_ = [
        ("tokens", c_int32),
        ("logits_to_keep", c_int32),
        *((name, c_void_p) for name in ["ids", "mask", "positions", "logits", "hidden"]),
        ("num_candidates", c_int32),
        ("reserved", c_int32),
        ("candidates", c_void_p),
        ("candidate_logits", c_void_p),
    ]


class CpuError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def aligned(size: int) -> Array:
    """Zeros, uint8, at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def _pointer(array: Array | None) -> int | None:
    return None if array is None else array.ctypes.data


class Library:
    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        text = [c_char_p, ctypes.c_size_t]
        self._declare("doge_cpu_interface", c_int32)
        self._declare("doge_cpu_layout", c_int32)
        self._declare("doge_cpu_instruction_sets", c_char_p)
        self._declare("doge_cpu_usable_instruction_sets", c_char_p)
        self._declare("doge_cpu_plan", c_uint64, POINTER(Config), POINTER(Piece), c_uint32, *text)
        self._declare(
            "doge_cpu_write_header",
            c_int32,
            *(POINTER(Config), POINTER(Piece), c_uint32, c_void_p, c_void_p, c_uint64, *text),
        )
        self._declare("doge_cpu_pack", c_int32, POINTER(Piece), c_void_p, c_void_p, c_void_p, c_void_p, *text)
        self._declare(
            "doge_cpu_open", c_int32, c_void_p, c_uint64, c_int32, c_char_p, c_uint32, POINTER(c_void_p), *text
        )
        self._declare("doge_cpu_close", None, c_void_p)
        self._declare("doge_cpu_model_header", POINTER(Header), c_void_p)
        self._declare("doge_cpu_model_instruction_set", c_char_p, c_void_p)
        self._declare("doge_cpu_model_threads", c_int32, c_void_p)
        self._declare("doge_cpu_state_create", c_int32, c_void_p, c_int32, c_int32, c_int32, POINTER(c_void_p), *text)
        self._declare("doge_cpu_state_destroy", None, c_void_p)
        self._declare("doge_cpu_state_length", c_int32, c_void_p)
        self._declare("doge_cpu_state_bytes", c_uint64, c_void_p)
        self._declare("doge_cpu_state_rewind", c_int32, c_void_p, c_int32, *text)
        self._declare("doge_cpu_state_window", c_int32, c_void_p, c_int32, *text)
        self._declare("doge_cpu_state_bound", c_int32, c_void_p, *text)
        self._declare("doge_cpu_state_slots", c_int32, c_void_p)
        self._declare("doge_cpu_state_saved_bytes", c_uint64, c_void_p)
        self._declare("doge_cpu_state_save", c_int32, c_void_p, c_void_p, c_uint64, *text)
        self._declare("doge_cpu_state_load", c_int32, c_void_p, c_void_p, c_uint64, *text)
        self._declare("doge_cpu_run", c_int32, c_void_p, POINTER(Call), *text)
        self._declare("doge_cpu_run_together", c_int32, POINTER(c_void_p), POINTER(Call), c_int32, *text)

    def _declare(self, name: str, result: object, *arguments: object) -> None:
        function = getattr(self.c, name)
        function.restype, function.argtypes = result, list(arguments)

    def check(self, function: Callable[..., int], *arguments: object) -> None:
        message = ctypes.create_string_buffer(512)
        status = function(*arguments, message, len(message))
        if status != SUCCESS:
            raise CpuError(status, message.value.decode())

    @property
    def usable(self) -> list[str]:
        return self.c.doge_cpu_usable_instruction_sets().decode().split()

    def file(self, config: Config, weights: Sequence[Weight]) -> Array:
        """A weight file in memory."""
        ordered = sorted(weights, key=lambda w: (w.layer, w.role, w.first_row))
        pieces = (Piece * len(ordered))(*(w.piece() for w in ordered))
        message = ctypes.create_string_buffer(512)
        size = self.c.doge_cpu_plan(config, pieces, len(pieces), message, len(message))
        if size == 0:
            raise CpuError(BAD_FILE, message.value.decode())
        file = aligned(size)
        self.check(self.c.doge_cpu_write_header, config, pieces, len(pieces), None, file.ctypes.data, size)
        for weight, piece in zip(ordered, pieces, strict=True):
            self.check(self.c.doge_cpu_pack, piece, *weight.pointers(), file.ctypes.data + piece.offset)
        return file

    def open(self, file: Array, threads: int = 1, instruction_set: str | None = None, flags: int = 0) -> CpuModel:
        return CpuModel(self, file, threads, instruction_set, flags)


@dataclasses.dataclass
class Weight:
    """One piece: float32 values, to be stored as `kind`, or codes of Blocks."""

    role: int
    layer: int
    values: Array | Blocks
    kind: int = FLOAT32
    first_row: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.values, Blocks):
            self.kind = self.values.bits
            self.codes = np.ascontiguousarray(self.values.codes.reshape(len(self.values.codes), -1))
            self.scales = np.ascontiguousarray(self.values.scales, np.float32)
        else:
            self.values = np.ascontiguousarray(np.atleast_2d(self.values), np.float32)

    def piece(self) -> Piece:
        if isinstance(self.values, Blocks):
            rows, columns, block = *self.codes.shape, self.values.block
        else:
            rows, columns = self.values.shape
            block = 0 if self.kind not in (INT4, INT8) else next(b for b in (128, 64, 32, 16) if columns % b == 0)
        return Piece(self.role, self.layer, self.first_row, rows, columns, self.kind, block)

    def pointers(self) -> tuple[int | None, int | None, int | None]:
        if isinstance(self.values, Blocks):
            return None, _pointer(self.codes), _pointer(self.scales)
        return _pointer(self.values), None, None


class CpuModel:
    def __init__(self, library: Library, file: Array, threads: int, instruction_set: str | None, flags: int) -> None:
        self.library, self._file, self.handle = library, file, c_void_p()
        name = None if instruction_set is None else instruction_set.encode()
        library.check(library.c.doge_cpu_open, file.ctypes.data, len(file), threads, name, flags, self.handle)
        self.config = library.c.doge_cpu_model_header(self.handle).contents.config

    def state(self, batch: int = 1, cache: int = FLOAT32, max_length: int = 0) -> State:
        return State(self, batch, cache, max_length)

    def logits(
        self, ids: Array, mask: Array | None = None, chunks: Sequence[int] | None = None, **options: int
    ) -> Array:
        """Logits [B, S, V], fed in pieces."""
        state, parts, start = self.state(len(ids), **options), [], 0
        for size in chunks or [ids.shape[1]]:
            part = slice(start, start + size)
            parts.append(state.run(ids[:, part], None if mask is None else mask[:, part]))
            start += size
        return np.concatenate(parts, axis=1)

    def __del__(self) -> None:
        self.library.c.doge_cpu_close(self.handle)


class State:
    def __init__(self, model: CpuModel, batch: int, cache: int, max_length: int) -> None:
        self.model, self.library, self.batch, self.handle = model, model.library, batch, c_void_p()
        create = self.library.c.doge_cpu_state_create
        self.library.check(create, model.handle, batch, cache, max_length, self.handle)

    @property
    def length(self) -> int:
        return self.library.c.doge_cpu_state_length(self.handle)

    @property
    def bytes(self) -> int:
        return self.library.c.doge_cpu_state_bytes(self.handle)

    def rewind(self, length: int) -> None:
        self.library.check(self.library.c.doge_cpu_state_rewind, self.handle, length)

    def content(self) -> Array:
        """What `load` restores, uint8."""
        content = np.empty(self.library.c.doge_cpu_state_saved_bytes(self.handle), np.uint8)
        self.library.check(self.library.c.doge_cpu_state_save, self.handle, content.ctypes.data, content.nbytes)
        return content

    def load(self, content: Array) -> None:
        self.library.check(self.library.c.doge_cpu_state_load, self.handle, content.ctypes.data, content.nbytes)

    def bound(self) -> State:
        """Drop from now on what no later token sees."""
        self.library.check(self.library.c.doge_cpu_state_bound, self.handle)
        return self

    def window(self, keys: int) -> State:
        """Let every token see so many keys, fewer than the model's."""
        self.library.check(self.library.c.doge_cpu_state_window, self.handle, keys)
        return self

    @property
    def slots(self) -> int:
        return self.library.c.doge_cpu_state_slots(self.handle)

    def run(self, ids: Array, mask: Array | None = None, keep: int = 0, positions: Array | None = None) -> Array:
        """Logits [B, keep or S, V]."""
        logits = np.full((self.batch, keep or ids.shape[1], self.model.config.vocab_size), np.nan, np.float32)
        self.call(ids, mask, positions, keep, logits=logits)
        return logits

    def hidden(self, ids: Array, mask: Array | None = None, positions: Array | None = None) -> Array:
        """Hidden states [B, S, H]."""
        hidden = np.full((self.batch, ids.shape[1], self.model.config.hidden_size), np.nan, np.float32)
        self.call(ids, mask, positions, hidden=hidden)
        return hidden

    def candidates(self, ids: Array, count: int, mask: Array | None = None) -> tuple[Array, Array]:
        """The best tokens [B, count] and their logits."""
        best, logits = np.zeros((self.batch, count), np.int64), np.zeros((self.batch, count), np.float32)
        self.call(ids, mask, candidates=best, candidate_logits=logits)
        return best, logits

    def call(
        self, ids: Array, mask: Array | None = None, positions: Array | None = None, keep: int = 0, **outputs: Array
    ) -> None:
        request = Request(self, ids, mask, positions, keep, **outputs)
        self.library.check(self.library.c.doge_cpu_run, self.handle, request.call)

    def __del__(self) -> None:
        self.library.c.doge_cpu_state_destroy(self.handle)


class Request:
    """A call of a state; what it points to lives as long."""

    def __init__(
        self,
        state: State,
        ids: Array,
        mask: Array | None = None,
        positions: Array | None = None,
        keep: int = 0,
        **outputs: Array,
    ) -> None:
        inputs = [None if x is None else np.ascontiguousarray(x, np.int64) for x in (ids, mask, positions)]
        best = outputs.get("candidates")
        self.state, self.outputs, self._inputs = state, outputs, inputs
        self.call = Call(
            ids.shape[1],
            keep,
            *map(_pointer, inputs),
            *(_pointer(outputs.get(name)) for name in ("logits", "hidden")),
            0 if best is None else best.shape[1],
            0,
            *(_pointer(outputs.get(name)) for name in ("candidates", "candidate_logits")),
        )

    @classmethod
    def of_logits(cls, state: State, ids: Array, mask: Array | None = None, keep: int = 0) -> Request:
        """Wants logits [B, keep or S, V]."""
        shape = (state.batch, keep or ids.shape[1], state.model.config.vocab_size)
        return cls(state, ids, mask, None, keep, logits=np.full(shape, np.nan, np.float32))

    @classmethod
    def of_candidates(cls, state: State, ids: Array, count: int) -> Request:
        """Wants the best tokens [B, count] and their logits."""
        best, logits = np.zeros((state.batch, count), np.int64), np.zeros((state.batch, count), np.float32)
        return cls(state, ids, candidates=best, candidate_logits=logits)


def run_together(requests: Sequence[Request]) -> None:
    """Run calls of several states in one."""
    library = requests[0].state.library
    states = (c_void_p * len(requests))(*(each.state.handle for each in requests))
    calls = (Call * len(requests))(*(each.call for each in requests))
    library.check(library.c.doge_cpu_run_together, states, calls, len(requests))


Store = Callable[[str, Array], "Array | Blocks | tuple[Array, int]"]
"""How a matrix is stored: as it is, in blocks, or rounded to a kind."""

_ROLES = {
    "input_layernorm.weight": 16,
    "self_attn.q_proj.weight": 17,
    "self_attn.k_proj.weight": 18,
    "self_attn.v_proj.weight": 19,
    "self_attn.q_proj.bias": 20,
    "self_attn.k_proj.bias": 21,
    "self_attn.v_proj.bias": 22,
    "self_attn.q_norm.weight": 23,
    "self_attn.k_norm.weight": 24,
    "self_attn.dt_proj.weight": 25,
    "self_attn.dt_proj.bias": 27,
    "self_attn.A": 28,
    "self_attn.o_proj.weight": 29,
    "self_attn.o_proj.bias": 30,
    "input_residual": 31,
    "post_attention_layernorm.weight": 32,
    "mlp.gate_proj.weight": 33,
    "mlp.up_proj.weight": 34,
    "mlp.down_proj.weight": 35,
    "mlp.gate_proj.bias": 36,
    "mlp.up_proj.bias": 37,
    "mlp.down_proj.bias": 38,
    "post_attention_residual": 39,
    "mlp.router_gate.weight": 48,
    "mlp.router_gate.bias": 49,
    "mlp.down_embed.weight": 50,
    "mlp.up_embed.weight": 51,
}


def config_of(architecture: Architecture, max_length: int, per_token: bool = True) -> Config:
    a, moe = architecture, architecture.moe
    window = a.keep_window_size if a.selects_keys(max_length) else 0
    rope = RotaryEmbedding(a, max_length)
    scales = rope.scales_beyond is not None
    config = Config(
        a.vocab_size,
        a.hidden_size,
        a.intermediate_size,
        a.num_hidden_layers,
        a.num_attention_heads,
        a.num_key_value_heads,
        a.head_dim,
        a.score_heads,
        window,
        max_length,
        {"exp": 0, "linear": 1, "none": 2}[a.score],
        {"dynamic": 1, "longrope": 2}[a.rope.rope_type] if scales else 0,
        0 if moe is None else 1 if per_token else 2,
        0 if moe is None else moe.num_experts,
        0 if moe is None else moe.num_experts_per_tok,
        a.rms_norm_eps,
        rope.attention_scaling,
        a.rope.rope_theta,
        a.rope.factor or 1.0,
        a.trained_length or 0,
        a.max_position_embeddings,
    )
    return config


def weights_of(module: DogeForExport, max_length: int, store: Store | None = None) -> Iterator[Weight]:
    """All pieces of a module."""
    architecture = module.architecture
    tensors: Mapping[str, torch.Tensor] = dict(module.state_dict())

    def piece(role: int, layer: int, name: str) -> Weight:
        values = tensors[name].detach().float().numpy()
        stored = values if store is None or values.ndim == 1 else store(name, values)
        return Weight(role, layer, *stored) if isinstance(stored, tuple) else Weight(role, layer, stored)

    tied = architecture.tie_word_embeddings
    if not tied:
        yield piece(1, -1, "model.embed_tokens.weight")
    yield piece(2, -1, "model.embed_tokens.weight" if tied else "lm_head.weight")
    yield piece(3, -1, "model.norm.weight")
    rope = RotaryEmbedding(architecture, max_length)
    yield Weight(4, -1, rope.inv_freq.numpy())
    if rope.scales_beyond is not None and architecture.rope.rope_type == "longrope":
        yield Weight(5, -1, rope.long_inv_freq.numpy())
    for layer in range(architecture.num_hidden_layers):
        for suffix, role in _ROLES.items():
            name = f"model.layers.{layer}.{suffix}"
            if name in tensors:
                yield piece(role, layer, name)
