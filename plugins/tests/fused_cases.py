"""Fused attention: seeded inputs, what PyTorch says to them, and the comparisons of kernels with the reference.

Sizes and past caches are those of an `AttentionCase`; what it calls new comes out of a projection here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from gpu_correctness import CHUNKS, Check, Libraries, misplaced, title_of
from operator_cases import LIMITS, UNTOUCHED, AttentionCase, attention_inputs, error
from torch import Tensor
from torch.nn import functional as F

from doge_export.model.rope import rotate
from doge_export.plugin.library import KernelCache, KernelLibrary, Projected


@dataclasses.dataclass(frozen=True)
class FusedCase:
    """Sizes of a call; `inputs` is X, and `norm` tells whether queries and keys are normalised."""

    attention: AttentionCase
    inputs: int = 96
    norm: bool = True
    exponential: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Of projection and caches."""
        return self.attention.dtype

    def of_type(self, dtype: torch.dtype) -> FusedCase:
        """Return the same case in another type."""
        return dataclasses.replace(self, attention=dataclasses.replace(self.attention, dtype=dtype))


def projected(case: FusedCase, device: str = "cpu") -> Projected:
    """New tokens: a standard normal projection, any angles, scores of 0.3 to 3.

    Epsilon is large beside the mean of squares of every third token, so that it counts.
    """
    a = case.attention
    generator = torch.Generator().manual_seed(1000 + a.seed)
    batch, heads = len(a.past), a.heads + 2 * a.kv_heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    projection = normal(batch, a.new, heads * a.size)
    projection[:, ::3, : (a.heads + a.kv_heads) * a.size] /= 16
    angles = 3 * normal(batch, a.new, a.size // 2)
    norms = (1 + normal(a.size) / 4, 1 + normal(a.size) / 4) if case.norm else None
    new = Projected(
        projection.to(a.dtype),
        normal(batch, a.new, case.inputs),
        normal(a.score_heads, case.inputs) / case.inputs**0.5,
        normal(a.score_heads) / 2,
        angles.cos(),
        angles.sin(),
        norms,
        epsilon=4e-3,
        exponential_score=case.exponential,
    )
    return on_device(new, device)


def on_device(new: Projected, device: str) -> Projected:
    """Return the same on another device."""
    moved = {
        field.name: value.to(device)
        for field in dataclasses.fields(new)
        if isinstance(value := getattr(new, field.name), Tensor)
    }
    norms = None if new.norms is None else (new.norms[0].to(device), new.norms[1].to(device))
    return dataclasses.replace(new, norms=norms, **moved)


def unfused(case: FusedCase, new: Projected) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and score as PyTorch makes them, rounded as the kernels round."""
    a = case.attention
    parts = new.projection.split([a.heads * a.size, a.kv_heads * a.size, a.kv_heads * a.size], dim=-1)
    turned = []
    for place, heads in ((0, a.heads), (1, a.kv_heads)):
        x = parts[place].float()
        if new.norms is not None:
            x = F.rms_norm(x.unflatten(-1, (heads, a.size)), (a.size,), new.norms[place], new.epsilon).flatten(2)
        turned.append(rotate(x, new.cos, new.sin, heads).to(a.dtype))
    step = new.score_rate * F.softplus(new.score_source @ new.score_weight.T)
    return *turned, parts[2].contiguous(), step.exp() if new.exponential_score else step


def call(
    library: KernelLibrary, case: FusedCase, new: Projected, past: KernelCache, lengths: Tensor, **options: Tensor
) -> Tensor:
    """The fused operator, in place in `past` unless `present` is given."""
    a = case.attention
    fixed = {"num_heads": a.heads, "scale": a.scale, "keep_window_size": a.window}
    return library.fused_attention(new, past, lengths, **fixed, **options)


def call_unfused(library: KernelLibrary, case: FusedCase, new: Projected, past: KernelCache, lengths: Tensor) -> Tensor:
    """PyTorch up to the contract's operator, and that."""
    a = case.attention
    return library.attention(
        *unfused(case, new), past, lengths, num_heads=a.heads, scale=a.scale, keep_window_size=a.window
    )


def differs(found: KernelCache, expected: KernelCache, case: FusedCase) -> str:
    """What is wrong with a cache: values must be the same, keys and scores as near as rounding allows.

    Of keys in 16 bits nearly all are the same: what float32 and float64 round to other numbers is one in hundreds.
    """
    past = torch.tensor(case.attention.past)[:, None, None]
    slots = torch.arange(case.attention.capacity)
    is_new = (slots >= past) & (slots < past + case.attention.new)
    if not torch.equal(found.value.cpu(), expected.value):
        return "the cached values differ"
    for name, limit in (("key", LIMITS[case.dtype]), ("score", 1e-5)):
        one, other = getattr(found, name).cpu().float(), getattr(expected, name).float()
        new = is_new[..., None] if name == "key" else is_new
        if not torch.equal(one.masked_fill(new, 0), other.masked_fill(new, 0)):
            return f"a {name} that is not new has changed"
        if not error(one * new, other * new) <= limit:
            return f"the new {name}s differ"
        others = ((one != other) & new).sum() / new.expand_as(one).sum()
        if name == "key" and case.dtype != torch.float32 and others > 0.05:
            return "the new keys are rounded another way"
    return ""


def check_fused(libraries: Libraries, name: str, case: FusedCase, device: str) -> Check:
    """Output within the limit of the reference's; the cache as `differs` asks."""
    on_host = attention_inputs(case.attention)
    new, inputs = projected(case), attention_inputs(case.attention, device)
    expected_cache, cache = on_host.past.clone(), inputs.past.clone()
    expected = call(libraries.reference, case, new, expected_cache, on_host.past_lengths)
    actual = call(libraries.kernels, case, on_device(new, device), cache, inputs.past_lengths).cpu()
    title = f"fused {title_of(name, case.attention)}"
    if not actual.isfinite().all():
        return Check(title, float("inf"), LIMITS[case.dtype], "not finite")
    return Check(title, error(actual, expected), LIMITS[case.dtype], differs(cache, expected_cache, case))


def check_fused_separate(libraries: Libraries, name: str, case: FusedCase, device: str) -> Check:
    """With present caches in memory of their own: bit for bit what the call in place gives."""
    inputs, new = attention_inputs(case.attention, device), projected(case, device)
    in_place, past = inputs.past.clone(), inputs.past.clone()
    present = KernelCache(*(torch.full_like(tensor, UNTOUCHED) for tensor in past.tensors()))
    expected = call(libraries.kernels, case, new, in_place, inputs.past_lengths)
    actual = call(libraries.kernels, case, new, past, inputs.past_lengths, present=present)
    pairs = [*zip(present.tensors(), in_place.tensors(), strict=True)]
    pairs += [*zip(past.tensors(), inputs.past.tensors(), strict=True), (actual, expected)]
    same = all(torch.equal(one, other) for one, other in pairs)
    title = f"fused, separate caches, {title_of(name, case.attention)}"
    return Check(title, 0, 0, "" if same else "differs from the call in place")


def check_fused_padded(libraries: Libraries, name: str, case: FusedCase, device: str) -> Check:
    """Rows padded on the right: real tokens as the reference has them, padding not stored."""
    a = case.attention
    on_host, new, inputs = attention_inputs(a), projected(case), attention_inputs(a, device)
    real = torch.tensor([(3 * row + 1) % (a.new + 1) for row in range(len(a.past))], dtype=torch.int32)
    expected_cache, cache = on_host.past.clone(), inputs.past.clone()
    expected = call(libraries.reference, case, new, expected_cache, on_host.past_lengths, new_lengths=real)
    given = on_device(new, device)
    actual = call(libraries.kernels, case, given, cache, inputs.past_lengths, new_lengths=real.to(device)).cpu()
    is_real = torch.arange(a.new) < real[:, None]
    note = differs(cache, expected_cache, case)
    if not actual.isfinite().all():
        note = "not finite"
    title = f"fused, padded, {title_of(name, a)}"
    return Check(title, error(actual[is_real], expected[is_real]), LIMITS[case.dtype], note)


def check_steps(libraries: Libraries, case: FusedCase, device: str) -> Check:
    """A text read in pieces, the last token by token, gives what one call gives."""
    whole = dataclasses.replace(case, attention=dataclasses.replace(case.attention, past=(0, 0), spare=0))
    inputs, new = attention_inputs(whole.attention, device), projected(whole, device)
    cache = inputs.past.clone()
    expected = call(libraries.kernels, whole, new, cache, inputs.past_lengths)
    pieces, lengths, outputs, start = inputs.past.clone(), inputs.past_lengths.clone(), [], 0
    for size in (whole.attention.new - 5, 2, 1, 1, 1):
        part = slice(start, start + size)
        cut = {name: getattr(new, name)[:, part].contiguous() for name in ("projection", "score_source", "cos", "sin")}
        outputs.append(call(libraries.kernels, whole, dataclasses.replace(new, **cut), pieces, lengths))
        lengths, start = lengths + size, start + size
    found = torch.cat(outputs, dim=1)
    same = all(torch.equal(one, other) for one, other in zip(cache.tensors(), pieces.tensors(), strict=True))
    title = f"fused, in pieces, {title_of('', whole.attention)}"
    return Check(title, error(found, expected), LIMITS[case.dtype], "" if same else "the caches differ")


def check_fused_bounded(
    libraries: Libraries, dtype: torch.dtype, chunks: tuple[int, ...], device: str, *, norm: bool = True
) -> Check:
    """Chunks into caches of w slots give what one call on an unbounded cache gives, and the best w keys remain."""
    attention = AttentionCase(past=(0, 0), new=sum(chunks), heads=8, kv_heads=2, size=64, window=48, dtype=dtype)
    case = FusedCase(attention, norm=norm)
    new, whole = on_device(projected(case), device), attention_inputs(attention, device).past
    lengths = torch.zeros(2, dtype=torch.int32, device=device)
    expected = call(libraries.kernels, case, new, whole, lengths)
    shape = (2, attention.kv_heads, attention.window)
    cache = KernelCache(
        *(torch.full((*shape, attention.size), 7.0, dtype=dtype, device=device) for _ in range(2)),
        torch.full(shape, 7.0, device=device),
        torch.full(shape, -1, dtype=torch.int32, device=device),
    )
    outputs, start = [], 0
    for size in chunks:
        part = slice(start, start + size)
        cut = {name: getattr(new, name)[:, part].contiguous() for name in ("projection", "score_source", "cos", "sin")}
        outputs.append(call(libraries.kernels, case, dataclasses.replace(new, **cut), cache, lengths))
        lengths, start = lengths + size, start + size
    title = f"fused, bounded, chunks {chunks} {str(dtype).removeprefix('torch.')}"
    on_host = KernelCache(*(tensor.cpu() for tensor in whole.tensors()))
    note = misplaced(attention, on_host, cache)
    return Check(title, error(torch.cat(outputs, 1).cpu(), expected.cpu()), LIMITS[dtype], note)


BASE = AttentionCase(past=(130, 7, 0, 64), new=1, heads=8, kv_heads=2, score_heads=2, size=64)


def fused_cases(sizes: tuple[int, ...] = (64, 128)) -> Iterator[tuple[str, FusedCase]]:
    """Decode and prompts, few splits and many, with selection and without, norms or none, all kinds of score heads."""
    base = FusedCase(BASE)

    def attention(**changes: int | tuple[int, ...]) -> FusedCase:
        return dataclasses.replace(base, attention=dataclasses.replace(BASE, **changes))

    for size in sizes:
        for new in (1, 3, 40):
            yield f"S {new} D {size}", attention(size=size, new=new)
        yield f"decode D {size} w 33", attention(size=size, window=33)
        yield f"no norm D {size}", dataclasses.replace(attention(size=size, window=33), norm=False)
    for heads, kv_heads, score_heads in ((16, 1, 1), (4, 4, 4), (8, 2, 8), (6, 3, 1)):
        for new in (1, 19):
            counts = {"heads": heads, "kv_heads": kv_heads, "score_heads": score_heads}
            yield f"S {new} {counts}", attention(window=40, new=new, **counts)
    yield "linear scores", dataclasses.replace(base, exponential=False)
    yield "X 1024", dataclasses.replace(base, inputs=1024)
    yield "X 4", dataclasses.replace(base, inputs=4)
    yield "one token ever", attention(past=(0,), spare=0)
    yield "the last slot", attention(past=(30, 63), spare=0)
    yield "several splits", attention(past=(1500, 400))
    yield "several splits, w 300", attention(past=(1500, 400), window=300)


def all_fused_checks(libraries: Libraries, device: str) -> Iterator[Check]:
    """Every comparison, in every type."""
    for dtype in LIMITS:
        for name, case in fused_cases():
            yield check_fused(libraries, name, case.of_type(dtype), device)
        for new in (1, 3, 40):
            case = FusedCase(dataclasses.replace(BASE, new=new, window=20, dtype=dtype))
            yield check_fused_separate(libraries, f"S {new}", case, device)
            yield check_fused_padded(libraries, f"S {new}", case, device)
        for chunks in CHUNKS:
            yield check_fused_bounded(libraries, dtype, chunks, device)
        yield check_steps(libraries, FusedCase(dataclasses.replace(BASE, new=60, window=20, dtype=dtype)), device)
