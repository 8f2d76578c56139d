"""Seeded inputs of the two operators, hard ones included, and what PyTorch's operators say to them.

Used by the tests of the CPU reference and by the check on a GPU.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from doge_export.model import operators
from doge_export.plugin.library import KernelCache

NEG = operators.NEG
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""What `error` may be at most."""

UNTOUCHED = 77.0
"""What unused slots of a cache hold before a call, and after it."""


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Sizes of a call. `past` holds P of each row, `score_heads` is 1, `kv_heads` or `heads`."""

    past: tuple[int, ...] = (5,)
    new: int = 3
    heads: int = 4
    kv_heads: int = 2
    score_heads: int = 2
    size: int = 16
    window: int = 0
    spare: int = 3
    scores: str = "moderate"
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def capacity(self) -> int:
        """C."""
        return max(self.past) + self.new + self.spare

    @property
    def scale(self) -> float:
        """1 / sqrt(D)."""
        return self.size**-0.5


@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """Tensors of a call, as `KernelLibrary.attention` takes them."""

    query: Tensor
    key: Tensor
    value: Tensor
    score: Tensor
    past: KernelCache
    past_lengths: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is new: query, key, value, score."""
        return self.query, self.key, self.value, self.score


def attention_inputs(case: AttentionCase, device: str = "cpu") -> AttentionInputs:
    """Standard normal tensors, scores of the case's kind, and a cache whose unused slots are UNTOUCHED."""
    generator = torch.Generator().manual_seed(case.seed)
    batch, capacity = len(case.past), case.capacity

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    past = KernelCache(
        normal(batch, case.kv_heads, capacity, case.size),
        normal(batch, case.kv_heads, capacity, case.size),
        draw_scores(case.scores, (batch, case.score_heads, capacity), generator),
    )
    for row, length in enumerate(case.past):
        for tensor in past.tensors():
            tensor[row, :, length:] = UNTOUCHED
    return AttentionInputs(
        normal(batch, case.new, case.heads * case.size).to(device),
        normal(batch, case.new, case.kv_heads * case.size).to(device),
        normal(batch, case.new, case.kv_heads * case.size).to(device),
        draw_scores(case.scores, (batch, case.new, case.score_heads), generator).to(device),
        KernelCache(*(tensor.to(device) for tensor in past.tensors())),
        torch.tensor(case.past, dtype=torch.int32, device=device),
    )


def draw_scores(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 scores.

    moderate: 1 +- 0.5, so that every key counts and none outweighs the others: what is left out shows. lognormal: the
    largest of many outweighs all others. signed: below 0 too. equal: all 1. levels: -1, -0.0, 0.0 and 1. huge: some
    1e30. padding: some NEG. all padding: all NEG.
    """
    normal = torch.randn(shape, generator=generator)
    chance = torch.rand(shape, generator=generator)
    if kind == "moderate":
        return 1 + normal / 2
    if kind == "lognormal":
        return normal.exp()
    if kind == "signed":
        return 3 * normal
    if kind == "equal":
        return torch.ones(shape)
    if kind == "levels":
        return torch.tensor([-1.0, -0.0, 0.0, 1.0])[(4 * chance).long()]
    if kind == "huge":
        return torch.where(chance < 0.2, 1e30, normal)
    if kind == "padding":
        return torch.where(chance < 0.4, NEG, normal)
    if kind == "all padding":
        return torch.full(shape, NEG)
    raise ValueError(kind)


def expected_attention(case: AttentionCase, inputs: AttentionInputs) -> tuple[Tensor, KernelCache, Tensor]:
    """PyTorch's operator in float32, row by row.

    Returns the output [B, S, Hq * D] in float32, the cache afterwards, and which outputs are specified [B, S, Hq, 1]:
    those that see a key above NEG.
    """
    present, outputs, specified = inputs.past.clone(), [], []
    for row, past in enumerate(case.past):
        old = [tensor[row : row + 1, :, :past] for tensor in inputs.past.tensors()]
        found = operators.dynamic_mask_attention(
            *(tensor[row : row + 1].float() for tensor in inputs.tensors()),
            *(tensor.float() for tensor in old),
            case.heads,
            case.kv_heads,
            case.scale,
            case.window,
        )
        for tensor, grown in zip(present.tensors(), found[1:], strict=True):
            tensor[row, :, : past + case.new] = grown[0].to(tensor.dtype)
        outputs.append(found[0])
        above = torch.stack([(found[3][0, :, : past + i + 1] > NEG).any(dim=1) for i in range(case.new)])
        specified.append(above.repeat_interleave(case.heads // case.score_heads, dim=1)[None, :, :, None])
    return torch.cat(outputs), present, torch.cat(specified)


@dataclasses.dataclass(frozen=True)
class CdmoeCase:
    """Sizes of a call; `keys` is K, and there are `spare` experts that no pair of keys names."""

    tokens: int = 3
    hidden: int = 32
    keys: int = 4
    heads: int = 1
    picks: int = 4
    spare: int = 0
    weights_inside: bool = False
    scores: str = "usual"
    dtype: torch.dtype = torch.float32
    seed: int = 0


def cdmoe_inputs(case: CdmoeCase, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, scores_x, scores_y, down_embed, up_embed.

    Scores are float32: "usual", in few "levels", so that there are ties, or so "close" that 16 bits would make ties.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shape = (1, case.tokens, case.heads, case.keys)
    x, y = normal(*shape), normal(*shape)
    if case.scores == "levels":
        x, y = x.round(), y.round()
    elif case.scores == "close":
        x, y = 1 + 1e-4 * x, 1 + 1e-4 * y
    experts = case.keys**2 + case.spare
    tables = normal(experts, case.hidden) / case.hidden**0.5, normal(experts, case.hidden)
    hidden, down, up = (t.to(device, case.dtype) for t in (normal(1, case.tokens, case.hidden), *tables))
    return hidden, x.to(device), y.to(device), down, up


def expected_cdmoe(case: CdmoeCase, inputs: tuple[Tensor, ...]) -> Tensor:
    """PyTorch's operator in float32."""
    hidden, x, y, down, up = (tensor.float() for tensor in inputs)
    return operators.cdmoe(hidden, x, y, down, up, case.picks, case.weights_inside)


def error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| in float64; infinite where something is not finite."""
    difference = (actual.double() - expected.double()).norm()
    if not torch.isfinite(difference):
        return float("inf")
    return (difference / expected.double().norm().clamp_min(1e-30)).item()
