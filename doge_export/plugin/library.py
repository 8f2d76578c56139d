"""Call libdoge_kernels_c.so on torch tensors through ctypes: the reference on CPU tensors, the kernels on CUDA tensors.

plugins/include/doge/operators.h defines the C interface with its shapes and rules.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doge_export.errors import DogeExportError
from doge_export.plugin.architectures import held_by
from doge_export.plugin.build import KERNELS, build
from doge_export.plugin.params import AttentionParams, CdmoeParams, DogeDtype, FusedAttentionParams, Params

_DTYPES = {
    torch.float32: DogeDtype.FLOAT32,
    torch.float16: DogeDtype.FLOAT16,
    torch.bfloat16: DogeDtype.BFLOAT16,
}
_BAD_SHAPE, _NO_KERNELS = -1, -3

_READ_BY_16_BYTES = frozenset(
    ("query", "key", "value", "past_key", "past_value", "output", "present_key", "present_value")
    + ("projected", "score_source", "score_weight", "hidden", "down_embed", "up_embed")
)

_OPERATORS = {AttentionParams: "attention", FusedAttentionParams: "fused_attention", CdmoeParams: "cdmoe"}


@dataclasses.dataclass(frozen=True)
class Projected:
    """New tokens as `KernelLibrary.fused_attention` takes them; all but `projection` float32.

    Attributes:
        projection: [B, S, (Hq + 2 Hkv) * D].
        score_source: [B, S, X].
        score_weight: [Hs, X].
        score_rate: [Hs].
        cos, sin: [B, S, D / 2].
        norms: weights [D] for queries and for keys; None: they are not normalised.
        epsilon: of the norms.
        exponential_score: scores are exponentials.
    """

    projection: Tensor
    score_source: Tensor
    score_weight: Tensor
    score_rate: Tensor
    cos: Tensor
    sin: Tensor
    norms: tuple[Tensor, Tensor] | None = None
    epsilon: float = 1e-6
    exponential_score: bool = True


@dataclasses.dataclass(frozen=True)
class KernelCache:
    """A cache of fixed capacity C.

    Attributes:
        key, value: [B, Hkv, C, D].
        score: [B, Hs, C] float32.
        slots: [B, Hkv, C] int32, the position in the text of the token in each slot; only of a bounded cache, whose
            capacity is keep_window_size.
    """

    key: Tensor
    value: Tensor
    score: Tensor
    slots: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the cache has."""
        return tuple(tensor for tensor in (self.key, self.value, self.score, self.slots) if tensor is not None)

    def clone(self) -> KernelCache:
        """Return a copy in new memory."""
        return KernelCache(*(tensor.clone() for tensor in self.tensors()))


class KernelLibrary:
    """The operators of a built library.

    Raises:
        DogeExportError: `path` is no such library.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._c = ctypes.CDLL(str(self.path.resolve()))
            self._c.doge_architectures.restype = c_char_p
        except (OSError, AttributeError) as error:
            raise DogeExportError(
                f"{path} is not a {KERNELS} ({error}); build one with: doge-export plugin build"
            ) from error
        for params, operator in _OPERATORS.items():
            self._function(f"doge_{operator}_problem", c_char_p, POINTER(params))
            self._function(f"doge_{operator}_workspace_bytes", c_size_t, POINTER(params))
            self._function(f"doge_{operator}_reference", c_int, POINTER(params))
            self._function(f"doge_{operator}", c_int, POINTER(params), c_void_p, c_size_t, c_void_p)
        self._function("doge_status_message", c_char_p, c_int)

    def _function(self, name: str, result: type, *arguments: type) -> None:
        function = getattr(self._c, name)
        function.restype, function.argtypes = result, arguments

    @property
    def architectures(self) -> tuple[str, ...]:
        """GPUs that the kernels are compiled for, as CMake names them; empty: the library has no kernels."""
        return held_by(self.path.resolve())

    def problem(self, params: Params) -> str | None:
        """Return what is wrong with the sizes in general or for the kernels; None if nothing is."""
        message: bytes | None = self._function_of(params, "_problem")(params)
        return None if message is None else message.decode()

    def status_message(self, status: int) -> str:
        """Return the meaning of a function's result: a doge_status or, above 0, a cudaError_t."""
        message: bytes = self._c.doge_status_message(status)
        return message.decode()

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score: Tensor,
        past: KernelCache,
        past_lengths: Tensor,
        *,
        num_heads: int,
        scale: float,
        keep_window_size: int,
        present: KernelCache | None = None,
        new_lengths: Tensor | None = None,
        output: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """Run DynamicMaskAttention, on a GPU on the current stream; the cache is written.

        On a GPU the call does not wait and, given output and workspace, does not allocate.

        Args:
            query: [B, S, Hq * D].
            key: [B, S, Hkv * D].
            value: [B, S, Hkv * D].
            score: [B, S, Hs] float32.
            past: the cache before the call.
            past_lengths: [B] int32, number of tokens read so far.
            num_heads: Hq.
            scale: factor of the dot products.
            keep_window_size: w; 0 keeps every key.
            present: the cache after the call. None: `past`, in place.
            new_lengths: [B] int32, number of the S tokens that are real. None: all.
            output: written to. None: a new tensor.
            workspace: uint8, at least `attention_workspace_bytes`; on a GPU only. None: a new one.

        Returns:
            output: [B, S, Hq * D].

        Raises:
            DogeExportError: tensors or sizes do not fit together.
            RuntimeError: the launch failed.
        """
        batch, _, _ = query.shape
        _, kv_heads, capacity, size = past.key.shape
        present = past if present is None else present
        output = torch.empty_like(query) if output is None else output
        new, score_heads = score.shape[1:]
        wide = {"query": (query, num_heads), "output": (output, num_heads), "key": (key, kv_heads)}
        for name, (tensor, heads) in (wide | {"value": (value, kv_heads)}).items():
            _expect(name, tensor, (batch, new, heads * size), query.dtype, query.device)
        _expect("score", score, (batch, new, score_heads), torch.float32, query.device)
        _expect_lengths(batch, query.device, past_lengths=past_lengths, new_lengths=new_lengths)
        for name, cache in (("past", past), ("present", present)):
            _expect_cache(name, cache, (batch, kv_heads, capacity, size), score_heads, query)
        params = AttentionParams(
            batch, new, capacity, num_heads, kv_heads, score_heads, size, keep_window_size, scale, _DTYPES[query.dtype]
        )
        _point(params, query=query, key=key, value=value, score=score)
        _point_at_cache(params, past, present, past_lengths=past_lengths, new_lengths=new_lengths, output=output)
        self._call(params, query.device, workspace)
        return output

    def fused_attention(
        self,
        new: Projected,
        past: KernelCache,
        past_lengths: Tensor,
        *,
        num_heads: int,
        scale: float,
        keep_window_size: int,
        present: KernelCache | None = None,
        new_lengths: Tensor | None = None,
        output: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """Run what makes queries, keys, values and scores of a projection, and DynamicMaskAttention of them.

        Args:
            new: the new tokens.
            past, past_lengths, num_heads, scale, keep_window_size: as in `attention`.
            present, new_lengths, output, workspace: as in `attention`.

        Returns:
            output: [B, S, Hq * D].

        Raises:
            DogeExportError: tensors or sizes do not fit together.
            RuntimeError: the launch failed.
        """
        x, device = new.projection, new.projection.device
        batch, tokens, _ = x.shape
        _, kv_heads, capacity, size = past.key.shape
        score_heads, inputs = new.score_weight.shape
        present = past if present is None else present
        output = x.new_empty(batch, tokens, num_heads * size) if output is None else output
        _expect("projection", x, (batch, tokens, (num_heads + 2 * kv_heads) * size), x.dtype, device)
        _expect("output", output, (batch, tokens, num_heads * size), x.dtype, device)
        query_norm, key_norm = new.norms or (None, None)
        for name, tensor, shape in (
            ("score_source", new.score_source, (batch, tokens, inputs)),
            ("score_weight", new.score_weight, (score_heads, inputs)),
            ("score_rate", new.score_rate, (score_heads,)),
            ("cos", new.cos, (batch, tokens, size // 2)),
            ("sin", new.sin, (batch, tokens, size // 2)),
            ("query_norm", query_norm, (size,)),
            ("key_norm", key_norm, (size,)),
        ):
            if tensor is not None:
                _expect(name, tensor, shape, torch.float32, device)
        _expect_lengths(batch, device, past_lengths=past_lengths, new_lengths=new_lengths)
        for name, cache in (("past", past), ("present", present)):
            _expect_cache(name, cache, (batch, kv_heads, capacity, size), score_heads, x)
        attention = AttentionParams(
            *(
                batch,
                tokens,
                capacity,
                num_heads,
                kv_heads,
                score_heads,
                size,
                keep_window_size,
                scale,
                _DTYPES[x.dtype],
            )
        )
        _point_at_cache(attention, past, present, past_lengths=past_lengths, new_lengths=new_lengths, output=output)
        params = FusedAttentionParams(attention, inputs, int(new.exponential_score), new.epsilon)
        _point(
            params,
            projected=x,
            score_source=new.score_source,
            score_weight=new.score_weight,
            score_rate=new.score_rate,
            cos=new.cos,
            sin=new.sin,
            query_norm=query_norm,
            key_norm=key_norm,
        )
        self._call(params, device, workspace)
        return output

    def cdmoe(
        self,
        hidden: Tensor,
        scores_x: Tensor,
        scores_y: Tensor,
        down_embed: Tensor,
        up_embed: Tensor,
        *,
        num_experts_per_tok: int,
        weights_inside: bool = False,
        output: Tensor | None = None,
        workspace: Tensor | None = None,
    ) -> Tensor:
        """Run CDMoE; waits, allocates and raises like `attention`.

        Args:
            hidden: [..., H].
            scores_x: [..., R, K] float32.
            scores_y: [..., R, K] float32.
            down_embed: [E, H].
            up_embed: [E, H].
            num_experts_per_tok: k.
            weights_inside: silu of the weighted product, instead of the weighted silu.
            output: written to. None: a new tensor.
            workspace: as in `attention`.

        Returns:
            output: [..., H].
        """
        output = torch.empty_like(hidden) if output is None else output
        *leading, size = hidden.shape
        heads, keys = scores_x.shape[-2:]
        for name, tensor, shape in (
            ("hidden", hidden, hidden.shape),
            ("output", output, hidden.shape),
            ("down_embed", down_embed, (down_embed.shape[0], size)),
            ("up_embed", up_embed, down_embed.shape),
        ):
            _expect(name, tensor, tuple(shape), hidden.dtype, hidden.device)
        for name, scores in (("scores_x", scores_x), ("scores_y", scores_y)):
            _expect(name, scores, (*leading, heads, keys), torch.float32, hidden.device)
        tokens, experts = hidden.numel() // size, down_embed.shape[0]
        inside = int(weights_inside)
        params = CdmoeParams(tokens, size, experts, keys, heads, num_experts_per_tok, inside, 0, _DTYPES[hidden.dtype])
        tables = {"down_embed": down_embed, "up_embed": up_embed}
        _point(params, hidden=hidden, scores_x=scores_x, scores_y=scores_y, output=output, **tables)
        self._call(params, hidden.device, workspace)
        return output

    def _call(self, params: Params, device: torch.device, workspace: Tensor | None) -> None:
        if device.type == "cpu":
            self._check(params, self._function_of(params, "_reference")(params))
        elif device.type == "cuda":
            with torch.cuda.device(device):
                self._launch(params, device, workspace, torch.cuda.current_stream(device).cuda_stream)
        else:
            raise DogeExportError(f"tensors are on {device}; the operators run on cpu and cuda")

    def _launch(self, params: Params, device: torch.device, workspace: Tensor | None, stream: int | None) -> None:
        self._check(params, _BAD_SHAPE if self.problem(params) else 0)
        for part in (params, params.attention) if isinstance(params, FusedAttentionParams) else (params,):
            for name, *_ in part._fields_:
                if name in _READ_BY_16_BYTES and (getattr(part, name) or 0) % 16:
                    raise DogeExportError(f"{name} begins at an address that is no multiple of 16; pass {name}.clone()")
        if workspace is None:
            needed = self._function_of(params, "_workspace_bytes")(params)
            workspace = torch.empty(needed, dtype=torch.uint8, device=device)
        status = self._function_of(params, "")(params, workspace.data_ptr(), workspace.numel(), stream)
        self._check(params, status)

    def _function_of(self, params: Params, what: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._c, f"doge_{_OPERATORS[type(params)]}{what}")
        return function

    def _check(self, params: Params, status: int) -> None:
        if status == 0:
            return
        if status == _BAD_SHAPE:
            raise DogeExportError(self.problem(params) or self.status_message(status))
        message = self.status_message(status)
        if status == _NO_KERNELS:
            raise DogeExportError(f"{self.path}: {message}; build one with nvcc: doge-export plugin build")
        raise RuntimeError(f"doge_{_OPERATORS[type(params)]}: {message} (status {status})")


def load(path: str | os.PathLike[str] | None = None) -> KernelLibrary:
    """Load the library at `path`, else at $DOGE_KERNELS_LIBRARY, else the one that `build` keeps or now makes."""
    path = path or os.environ.get("DOGE_KERNELS_LIBRARY") or build().libraries[KERNELS]
    return KernelLibrary(path)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor that C is to read.

    Raises:
        DogeExportError: it has another shape, type or device, or is not contiguous.
    """
    if dtype not in (*_DTYPES, torch.int32):
        raise DogeExportError(f"{name} is {dtype}, not float32, float16 or bfloat16")
    seen = (tuple(tensor.shape), tensor.dtype, tensor.device)
    if seen != (tuple(shape), dtype, device):
        raise DogeExportError(f"{name} is {_words(*seen)}; {_words(tuple(shape), dtype, device)} is expected")
    if not tensor.is_contiguous():
        raise DogeExportError(f"{name} is not contiguous; pass {name}.contiguous()")


def _expect_lengths(batch: int, device: torch.device, **given: Tensor | None) -> None:
    for name, lengths in given.items():
        if lengths is not None:
            _expect(name, lengths, (batch,), torch.int32, device)


def _expect_cache(
    name: str, cache: KernelCache, shape: tuple[int, int, int, int], score_heads: int, like: Tensor
) -> None:
    """Check a cache whose keys and values are to have a shape [B, Hkv, C, D], and dtype and device of `like`."""
    batch, kv_heads, capacity, _ = shape
    for part, tensor in (("key", cache.key), ("value", cache.value)):
        _expect(f"{name}.{part}", tensor, shape, like.dtype, like.device)
    _expect(f"{name}.score", cache.score, (batch, score_heads, capacity), torch.float32, like.device)
    if cache.slots is not None:
        _expect(f"{name}.slots", cache.slots, (batch, kv_heads, capacity), torch.int32, like.device)


def _words(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')} on {device}"


def _point_at_cache(params: AttentionParams, past: KernelCache, present: KernelCache, **others: Tensor | None) -> None:
    _point(
        params,
        past_key=past.key,
        past_value=past.value,
        past_score=past.score,
        past_slots=past.slots,
        present_key=present.key,
        present_value=present.value,
        present_score=present.score,
        present_slots=present.slots,
        **others,
    )


def _point(params: Params, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(params, name, None if tensor is None else tensor.data_ptr())
