"""The kernels as what `torch.ops.doge` runs on a GPU, so that `DogeForExport` runs them in PyTorch.

PyTorch's operators give new, grown caches; the kernels write into caches of fixed capacity. Here the capacity is T, the
past is copied once, and the rest is written in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from doge_export.model import operators
from doge_export.plugin.library import KernelCache, KernelLibrary, load


def register(library: KernelLibrary | None = None, device_type: str = "cuda") -> None:
    """Makes `library` the implementation of torch.ops.doge.dynamic_mask_attention and torch.ops.doge.cdmoe.

    Args:
        library: None is `load()`.
        device_type: "cuda" for the kernels, "cpu" for the C++ reference (slower than PyTorch, but sums in double).

    The last call holds; `torch.library`'s `set_kernel_enabled` turns it off and on. Sizes that the kernels do not cover
    raise DogeExportError.
    """
    library = load() if library is None else library

    def dynamic_mask_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        past_score: Tensor,
        num_heads: int,
        kv_num_heads: int,
        scale: float,
        keep_window_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, past, _ = past_key.shape
        new = query.shape[1]
        cache = KernelCache(*(_grown(tensor, axis=2, by=new) for tensor in (past_key, past_value, past_score)))
        output = library.attention(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            score.contiguous(),
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
    """A copy with room for `by` more along `axis`."""
    shape = list(tensor.shape)
    shape[axis] += by
    grown = tensor.new_empty(shape)
    grown.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
    return grown
