"""The project's own PyTorch module in float32: the reference for generations that transformers does not have.

Exports are traced from this module, so it validates what follows it (trace, lowering, the file, the runtime and its
cache) but not itself. The module itself is tested against answers that each generation's published code gave for small
checkpoints (tests/golden).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.validation import ambiguity
from doge_export.validation.oracle import Oracle, ReferenceRun, broadcast

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting, RatioMask
    from doge_export.model.attention import LayerCache

PROVEN_GENERATIONS = ("G1", "G3b", "G4b", "G5")
PROVEN_CDMOE = ("M0", "M1", "M6", "M7")
"""Generations and experts of the files in tests/golden; `is_proven` adds the other conditions."""


def is_proven(architecture: Architecture) -> bool:
    """Return whether a golden file covers this architecture.

    The files cover language models, hard masks that mask nothing, and ratio masks that count all keys.
    """
    moe, ratio = architecture.moe, architecture.ratio_mask
    plain_fourth = architecture.generation == "G4b" and architecture.score == "none"  # is_causal
    return (
        architecture.generation in PROVEN_GENERATIONS
        and (moe is None or moe.variant in PROVEN_CDMOE)
        and (ratio is None or ratio.keep_window_size == 0)
        and architecture.score != "threshold"
        and architecture.task == "text-generation"
        and not plain_fourth
    )


class ModuleOracle(Oracle):
    """The reference in `doge_export.model`, with the CDMoE routing of the exported graph."""

    name = "the PyTorch module"

    def __init__(self, checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting = "reference") -> None:
        from doge_export.model import MODULES

        super().__init__(checkpoint)
        architecture = self.architecture
        self._mixes_tokens = (
            architecture.moe is not None and architecture.moe.mixes_tokens and cdmoe_routing == "reference"
        )
        self._module: Any = MODULES[architecture.task].from_tensors(architecture, checkpoint.tensors, cdmoe_routing)
        self._layers: Any = self._module.model.layers
        # Recorded by hooks in the last call, one entry for each layer.
        self._cache: list[LayerCache] = []
        self._routed: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._matched: list[torch.Tensor] = []
        self._watch()

    def describe(self) -> dict[str, str]:
        """See `Oracle`."""
        from doge_export.version import __version__

        generation, moe = self.architecture.generation, self.architecture.moe
        mine = generation if moe is None else f"{generation} with experts {moe.variant}"
        note = (
            f"generation {mine} is not in transformers: judged by doge-export's own PyTorch module, which the export "
            "was traced from"
        )
        if is_proven(self.architecture):
            note += "; tests/golden holds it against the answers of that generation's published code"
        else:
            note += ", written after that generation's published code but not held against its answers"
        return {"library": "doge-export", "version": __version__, "note": note}

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, chunks: Sequence[int], *, noise: int | None = None
    ) -> ReferenceRun:
        """See `Oracle`."""
        import torch

        with torch.inference_mode():
            self._seed_noise(noise)
            ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
            if self.architecture.task == "text-generation":
                return self._feed(ids, mask, chunks)
            return self._answer(ids, mask)

    def generate(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """See `Oracle`."""
        import torch

        with torch.inference_mode():
            self._seed_noise(None)
            ids, cache = torch.tensor([list(prompt)]), None
            answer: list[int] = []
            for _ in range(new_tokens):
                seen = len(prompt) + len(answer)
                positions = torch.arange(seen - ids.shape[1], seen)[None]
                logits, cache = self._module(ids, torch.ones_like(ids), positions, cache)
                answer.append(int(logits[0, -1].argmax()))
                ids = torch.tensor([answer[-1:]])
        return answer

    def _watch(self) -> None:
        """Register hooks that record the scores the layers select by; the embedding, called first, clears them."""
        from doge_export.model.attention import InnerFunction

        def begin(module: Any, inputs: Any) -> None:
            for seen in (self._cache, self._routed, self._matched):
                seen.clear()

        def match(inner: InnerFunction, queries: torch.Tensor) -> None:
            self._matched.append(inner.match(queries.unflatten(-1, (inner.num_heads, -1)).transpose(1, 2)))

        embedding = self._module.model.embed_tokens
        embedding.register_forward_pre_hook(begin)
        embedding.register_forward_hook(self._add_noise)
        for layer in self._layers:
            attention = layer.self_attn
            attention.register_forward_hook(lambda module, inputs, output: self._cache.append(output[1]))
            if self.architecture.inner_values is not None:
                attention.v_proj.queries.register_forward_hook(
                    lambda module, inputs, output, inner=attention.v_proj: match(inner, output)
                )
            if self.architecture.moe is not None:
                layer.mlp.router_gate.register_forward_hook(lambda module, inputs, output: self._routed.append(output))

    def _feed(self, ids: torch.Tensor, mask: torch.Tensor, chunks: Sequence[int]) -> ReferenceRun:
        import torch

        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, cache, start = [], None, 0
        gaps = np.full(tuple(ids.shape), np.inf)
        for size in chunks:
            part = slice(start, start + size)
            piece, cache = self._module(ids[:, part], mask[:, part], positions[:, part], cache)
            logits.append(piece)
            gaps[:, part] = self._call_gaps(mask[:, : start + size], size)
            start += size
        keys, values = ([layer[which].numpy() for layer in self._cache] for which in (0, 1))
        return ReferenceRun(torch.cat(logits, 1).numpy(), keys, values, self._all_gaps(gaps, mask, chunks))

    def _answer(self, ids: torch.Tensor, mask: torch.Tensor) -> ReferenceRun:
        """Run a model without a language model's head, in one call."""
        output = self._module(ids, mask).numpy()
        tokens = ids.shape[1]
        gaps = self._all_gaps(self._call_gaps(mask, tokens), mask, (tokens,))
        if self.architecture.task == "feature-extraction":
            return ReferenceRun(output, [], [], gaps, ranked=False)
        return ReferenceRun(broadcast(output, tokens), [], [], gaps, ranked=output.shape[1] > 1)

    def _call_gaps(self, mask: torch.Tensor, size: int) -> np.ndarray:
        """Compute the gaps of the selections that a call makes for its tokens alone, [B, size].

        Args:
            mask: [B, T], of all tokens so far.
            size: number of tokens of the last call.
        """
        import torch

        gaps = np.full((len(mask), size), np.inf)
        inner, moe, ratio = self.architecture.inner_values, self.architecture.moe, self.architecture.ratio_mask
        if inner is not None:
            gaps = np.minimum(gaps, ambiguity.pick_gaps(self._matched, inner.num_values_per_head))
        if moe is not None:
            halves = [(x.flatten(0, 2), y.flatten(0, 2)) for x, y in self._routed]  # every routing head by itself
            if moe.ranks_experts:
                found = ambiguity.rank_gaps(halves, moe.num_experts_per_tok)
            else:
                found = ambiguity.routing_gaps([torch.stack(pair) for pair in halves], moe.num_experts_per_tok)
            gaps = np.minimum(gaps, found.reshape(len(mask), size, -1).min(-1))
        if ratio is not None:
            scores = [score[:, :-1].numpy() for _, _, score in self._cache]
            found = ambiguity.ratio_gaps(scores, mask.numpy(), _rank(ratio, mask.shape[1]))
            gaps = np.minimum(gaps, found[:, None])  # one ranking for all tokens of the call
        return gaps

    def _all_gaps(self, gaps: np.ndarray, mask: torch.Tensor, chunks: Sequence[int]) -> np.ndarray:
        """Add the gaps of the keys selected from the whole cache to those of the calls, and spread both; [B, S]."""
        import torch

        is_token = mask.numpy()
        if self.architecture.keep_window_size > 0:
            scores = [score.numpy() for _, _, score in self._cache]
            found = ambiguity.selection_gaps(scores, is_token, self.architecture.keep_window_size, chunks)
            gaps = np.minimum(gaps, found)
        if self.architecture.score == "threshold":
            steps = []
            for layer, (_, value, _) in zip(self._layers, self._cache, strict=True):
                attention = layer.self_attn
                step = attention.A * torch.nn.functional.softplus(attention.dt_proj(value.transpose(1, 2).flatten(2)))
                steps.append(step.transpose(1, 2).numpy())
            gaps = np.minimum(gaps, ambiguity.threshold_gaps(steps, is_token))
        return ambiguity.spread(
            gaps, chunks, mixes_tokens=self._mixes_tokens, looks_ahead=self.architecture.may_fully_mask_rows
        )


def _rank(mask: RatioMask, total: int) -> int:
    """Return k of `RatioMask` for `total` keys; 0 where none is masked."""
    counted = total - mask.keep_window_size if mask.of_excess else total
    return int(counted * mask.ratio) if total > mask.keep_window_size else 0
