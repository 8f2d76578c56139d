"""Register the kernels as the CUDA implementation of `torch.ops.doge`, so that `DogeForExport` runs them in PyTorch.

PyTorch's operators return new, grown caches; the kernels write into caches of fixed capacity. Here the capacity is T:
the past is copied once, and the new tokens are written in place.

The signatures are those of `model.operators`, where torch infers the operators' schemas from them; a kernel gets its
arguments by position and need not repeat them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doge_export.model import operators
from doge_export.plugin.library import KernelCache, KernelLibrary, load


def register(library: KernelLibrary | None = None, device_type: str = "cuda") -> None:
    """Make `library` the implementation of torch.ops.doge.dynamic_mask_attention and torch.ops.doge.cdmoe.

    The last call counts; `set_kernel_enabled` of `torch.library` turns it off and on. The operators then raise
    DogeExportError for sizes that the kernels do not cover.

    Args:
        library: None: `load()`.
        device_type: "cuda" for the kernels, "cpu" for the C++ reference (slower than PyTorch, but sums in double).
    """
    library = load() if library is None else library

    def dynamic_mask_attention(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *tensors, num_heads, _, scale, keep_window_size = arguments
        query, key, value, score = (tensor.contiguous() for tensor in tensors[:4])
        batch, _, past, _ = tensors[4].shape
        cache = KernelCache(*(_grown(tensor, axis=2, by=query.shape[1]) for tensor in tensors[4:]))
        output = library.attention(
            query,
            key,
            value,
            score,
            cache,
            torch.full((batch,), past, dtype=torch.int32, device=query.device),
            num_heads=num_heads,
            scale=scale,
            keep_window_size=keep_window_size,
        )
        return output, cache.key, cache.value, cache.score

    def cdmoe(
        hidden: Tensor,
        scores_x: Tensor,
        scores_y: Tensor,
        down_embed: Tensor,
        up_embed: Tensor,
        num_experts_per_tok: int,
        weights_inside: bool = False,
    ) -> Tensor:
        return library.cdmoe(
            hidden.contiguous(),
            scores_x.float().contiguous(),
            scores_y.float().contiguous(),
            down_embed.contiguous(),
            up_embed.contiguous(),
            num_experts_per_tok=num_experts_per_tok,
            weights_inside=weights_inside,
        )

    operators.dynamic_mask_attention.register_kernel(device_type)(dynamic_mask_attention)
    operators.cdmoe.register_kernel(device_type)(cdmoe)


def _grown(tensor: Tensor, axis: int, by: int) -> Tensor:
    """Return a copy with room for `by` more elements along `axis`."""
    shape = list(tensor.shape)
    shape[axis] += by
    grown = tensor.new_empty(shape)
    grown.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
    return grown
