"""The kernels against the C++ reference and against float64, on every kind of input, for gpu_check.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from operator_cases import (
    LIMITS,
    NEG,
    UNTOUCHED,
    AttentionCase,
    AttentionInputs,
    CdmoeCase,
    attention_inputs,
    cdmoe_inputs,
    error,
    expected_cdmoe,
)
from torch import Tensor

from doge_export.plugin.library import KernelCache, KernelLibrary


@dataclasses.dataclass(frozen=True)
class Libraries:
    """What is checked, and what it is compared with on the CPU."""

    kernels: KernelLibrary
    reference: KernelLibrary


HEAD_SIZES = (64, 80, 96, 128, 256)
CHUNKS = ((120,), (1,) * 60, (50, 1, 1, 30), (30, 60))
"""In which portions a bounded cache reads."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: a norm-wise error and what it may be."""

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.error <= self.limit and not self.note


def attention_cases() -> Iterator[tuple[str, AttentionCase]]:
    """Small enough for the reference on the CPU."""
    base = AttentionCase(past=(130, 7, 0, 64), new=1, heads=8, kv_heads=2, score_heads=2, size=64)
    for size in HEAD_SIZES:
        yield f"decode D {size}", dataclasses.replace(base, size=size)
        yield f"decode D {size} w 33", dataclasses.replace(base, size=size, window=33)
        yield f"prefill D {size}", dataclasses.replace(base, size=size, new=70)
        yield f"prefill D {size} w 33", dataclasses.replace(base, size=size, new=70, window=33)
    for kind in ("lognormal", "signed", "equal", "levels", "huge", "padding", "all padding"):
        yield f"decode scores {kind}", dataclasses.replace(base, window=16, scores=kind)
        yield f"prefill scores {kind}", dataclasses.replace(base, window=16, scores=kind, new=70)
    for heads, kv_heads, score_heads in ((16, 1, 1), (16, 1, 16), (4, 4, 4), (4, 4, 1), (12, 4, 12), (5, 1, 5)):
        counts = {"heads": heads, "kv_heads": kv_heads, "score_heads": score_heads}
        yield f"decode heads {counts}", dataclasses.replace(base, window=40, **counts)
        yield f"prefill heads {counts}", dataclasses.replace(base, window=40, new=33, **counts)
    yield "window of one", dataclasses.replace(base, window=1, new=9)
    yield "window of T", dataclasses.replace(base, past=(63,), window=64)
    yield "one token ever", dataclasses.replace(base, past=(0,), spare=0)
    yield "16 rows", dataclasses.replace(base, past=tuple(range(0, 800, 50)), window=300)
    yield "long decode", dataclasses.replace(base, past=(9000, 4097), new=1)
    yield "long decode w 2048", dataclasses.replace(base, past=(9000, 4097), new=1, window=2048)
    yield "several new tokens after many", dataclasses.replace(base, past=(3000,), new=5, window=512)


def large_cases() -> Iterator[tuple[str, AttentionCase]]:
    """Too large for the reference; compared with float64 on the GPU."""
    base = AttentionCase(heads=16, kv_heads=8, score_heads=8, size=128, spare=0, dtype=torch.float16)
    for window in (0, 2048):
        yield f"decode T 32768 w {window}", dataclasses.replace(base, past=(32767, 20000), new=1, window=window)
        yield f"decode T 131072 w {window}", dataclasses.replace(base, past=(131071,), new=1, window=window)
        yield f"prefill 4096 w {window}", dataclasses.replace(base, past=(0,), new=4096, window=window)
    yield "decode T 131072 w 131071", dataclasses.replace(base, past=(131071,), new=1, window=131071)
    yield "prefill 2048 after 2048", dataclasses.replace(base, past=(2048,), new=2048, window=1024)


def varied_cases() -> Iterator[tuple[str, AttentionCase]]:
    """Those that are also run with separate caches and with padding on the right."""
    base = AttentionCase(past=(130, 7, 0, 64), new=1, heads=8, kv_heads=2, score_heads=2, size=64)
    for new in (1, 3, 40):
        for window in (0, 20):
            yield f"S {new} w {window}", dataclasses.replace(base, new=new, window=window)


def cdmoe_cases() -> Iterator[tuple[str, CdmoeCase]]:
    """Decode and, beyond 256 tokens and routing heads together, prefill; the last as large as it gets."""
    for tokens in (1, 5, 16, 100):
        for scores in ("usual", "levels", "close"):
            case = CdmoeCase(tokens=tokens, hidden=256, keys=32, picks=16, scores=scores)
            yield f"tokens {tokens} scores {scores}", case
    yield (
        "three routing heads, weights inside",
        CdmoeCase(tokens=9, hidden=320, keys=16, heads=3, picks=8, weights_inside=True),
    )
    yield "prefill of 300 tokens", CdmoeCase(tokens=300, hidden=256, keys=32, picks=16)
    yield (
        "prefill of 260 tokens, three routing heads",
        CdmoeCase(tokens=260, hidden=320, keys=16, heads=3, picks=8, weights_inside=True),
    )
    yield "every pair", CdmoeCase(tokens=3, hidden=64, keys=8, picks=64)
    yield "one pair", CdmoeCase(tokens=3, hidden=64, keys=8, picks=1, spare=5)
    yield "E 16384 k 64 H 1024", CdmoeCase(tokens=16, hidden=1024, keys=128, picks=64)


def call(
    library: KernelLibrary, case: AttentionCase, inputs: AttentionInputs, past: KernelCache, **options: Any
) -> Tensor:
    """The operator; in place in `past`, unless `present` is given."""
    fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window}
    return library.attention(*inputs.tensors(), past, inputs.past_lengths, **fixed, **options)


def check_attention(libraries: Libraries, name: str, case: AttentionCase, device: str) -> Check:
    """Output within the limit of the reference's, cache the same bit for bit, unused slots as they were."""
    on_host, inputs = attention_inputs(case), attention_inputs(case, device)
    expected_cache, cache = on_host.past.clone(), inputs.past.clone()
    expected = call(libraries.reference, case, on_host, expected_cache)
    actual = call(libraries.kernels, case, inputs, cache).cpu()
    specified = sees_a_token(case, expected_cache)
    limit = LIMITS[case.dtype]
    title = title_of(name, case)
    if not actual.isfinite().all():
        return Check(title, float("inf"), limit, "not finite")
    same = all(torch.equal(a.cpu(), b) for a, b in zip(cache.tensors(), expected_cache.tensors(), strict=True))

    def chosen(tensor: Tensor) -> Tensor:
        return tensor.float().unflatten(-1, (case.heads, case.size)) * specified

    return Check(title, error(chosen(actual), chosen(expected)), limit, "" if same else "the cache differs")


def check_separate(libraries: Libraries, name: str, case: AttentionCase, device: str) -> Check:
    """With present caches in memory of their own: bit for bit what the call in place gives, and the past as before."""
    inputs = attention_inputs(case, device)
    in_place, past = inputs.past.clone(), inputs.past.clone()
    present = KernelCache(*(torch.full_like(tensor, UNTOUCHED) for tensor in past.tensors()))
    expected = call(libraries.kernels, case, inputs, in_place)
    actual = call(libraries.kernels, case, inputs, past, present=present)
    pairs = [*zip(present.tensors(), in_place.tensors(), strict=True)]
    pairs += [*zip(past.tensors(), inputs.past.tensors(), strict=True), (actual, expected)]
    same = all(torch.equal(one, other) for one, other in pairs)
    return Check(f"separate caches, {title_of(name, case)}", 0, 0, "" if same else "differs from the call in place")


def check_padded(libraries: Libraries, name: str, case: AttentionCase, device: str) -> Check:
    """Rows padded on the right: real tokens as the reference has them, padding neither stored nor NaN."""
    on_host, inputs = attention_inputs(case), attention_inputs(case, device)
    real = torch.tensor([(3 * row + 1) % (case.new + 1) for row in range(len(case.past))], dtype=torch.int32)
    expected_cache, cache = on_host.past.clone(), inputs.past.clone()
    expected = call(libraries.reference, case, on_host, expected_cache, new_lengths=real)
    actual = call(libraries.kernels, case, inputs, cache, new_lengths=real.to(device)).cpu()
    is_real = torch.arange(case.new) < real[:, None]
    same = all(torch.equal(a.cpu(), b) for a, b in zip(cache.tensors(), expected_cache.tensors(), strict=True))
    note = "" if same and actual.isfinite().all() else "the cache differs, or the output is not finite"
    return Check(f"padded, {title_of(name, case)}", error(actual[is_real], expected[is_real]), LIMITS[case.dtype], note)


def title_of(name: str, case: AttentionCase | CdmoeCase) -> str:
    """With the storage type."""
    return f"{name} {str(case.dtype).removeprefix('torch.')}"


def sees_a_token(case: AttentionCase, cache: KernelCache) -> Tensor:
    """[B, S, Hq, 1] bool: whether a key above NEG is seen; what others give is not specified."""
    rows = []
    for row, past in enumerate(case.past):
        above = (cache.score[row, :, : past + case.new] > NEG).cummax(dim=1).values
        rows.append(above[:, past:].T.repeat_interleave(case.heads // case.score_heads, dim=1))
    return torch.stack(rows)[..., None]


def check_large(libraries: Libraries, name: str, case: AttentionCase, device: str) -> Check:
    """As `check_attention`, against float64 on the device."""
    inputs = attention_inputs(case, device)
    actual = call(libraries.kernels, case, inputs, inputs.past)
    return Check(title_of(name, case), error(actual, exact_attention(case, inputs)), LIMITS[case.dtype])


def exact_attention(case: AttentionCase, inputs: AttentionInputs, tokens_at_once: int = 128) -> Tensor:
    """The operator's output in float64 [B, S, Hq * D], of a cache that holds the new tokens already."""
    queries = inputs.query.unflatten(-1, (case.heads, case.size)).transpose(1, 2).double()
    outputs = []
    for row, past in enumerate(case.past):
        total, parts = past + case.new, []
        keys, values = (
            tensor[row, :, :total].double().repeat_interleave(case.heads // case.kv_heads, dim=0)
            for tensor in (inputs.past.key, inputs.past.value)
        )
        scores = inputs.past.score[row, :, :total]
        places = torch.arange(total, device=scores.device)
        for start in range(0, case.new, tokens_at_once):
            tokens = torch.arange(start, min(start + tokens_at_once, case.new), device=scores.device)
            kept = places <= past + tokens[:, None]
            bias = scores[:, None].masked_fill(~kept, NEG)
            if 0 < case.window < total:
                best = bias.sort(dim=-1, descending=True, stable=True).indices[..., : case.window]
                kept = kept & torch.zeros_like(bias, dtype=torch.bool).scatter(-1, best, True)
            bias = bias.double().masked_fill(~kept, -torch.inf).repeat_interleave(case.heads // case.score_heads, dim=0)
            logits = case.scale * queries[row][:, tokens] @ keys.mT + bias
            parts.append((logits.softmax(dim=-1) @ values).transpose(0, 1).flatten(1))
        outputs.append(torch.cat(parts))
    return torch.stack(outputs)


def check_bounded(libraries: Libraries, dtype: torch.dtype, chunks: tuple[int, ...], device: str) -> Check:
    """Chunks into caches of w slots give what one call on an unbounded cache gives, and the best w keys remain."""
    case = AttentionCase(past=(0, 0), new=sum(chunks), heads=8, kv_heads=2, size=64, window=48, dtype=dtype)
    whole = attention_inputs(case)
    unbounded = whole.past.clone()
    expected = call(libraries.reference, case, whole, unbounded)
    shape = (2, case.kv_heads, case.window)
    cache = KernelCache(
        *(torch.full((*shape, case.size), 7.0, dtype=dtype, device=device) for _ in range(2)),
        torch.full(shape, 7.0, device=device),
        torch.full(shape, -1, dtype=torch.int32, device=device),
    )
    outputs, lengths = [], torch.zeros(2, dtype=torch.int32, device=device)
    for part in zip(*(tensor.split(chunks, dim=1) for tensor in whole.tensors()), strict=True):
        tensors = [tensor.contiguous().to(device) for tensor in part]
        outputs.append(call(libraries.kernels, case, AttentionInputs(*tensors, cache, lengths), cache).cpu())
        lengths += tensors[0].shape[1]
    title = f"bounded, chunks {chunks} {str(dtype).removeprefix('torch.')}"
    return Check(title, error(torch.cat(outputs, 1), expected), LIMITS[dtype], misplaced(case, unbounded, cache))


def misplaced(case: AttentionCase, whole: KernelCache, bounded: KernelCache) -> str:
    """What is wrong with the slots of a full bounded cache; empty where nothing is."""
    assert bounded.slots is not None
    places = bounded.slots.cpu().long()
    scores = whole.score[:, :, : case.new]
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : case.window]
    if not torch.equal(places.sort(dim=-1).values, best.sort(dim=-1).values):
        return "the slots hold other keys than the best"
    if not torch.equal(bounded.score.cpu(), scores.gather(-1, places)):
        return "scores do not belong to the slots' keys"
    index = places[..., None].expand(-1, -1, -1, case.size)
    same = all(
        torch.equal(held.cpu(), all_of_them.gather(2, index))
        for held, all_of_them in ((bounded.key, whole.key), (bounded.value, whole.value))
    )
    return "" if same else "keys or values do not belong to the slots"


def check_cdmoe(libraries: Libraries, name: str, case: CdmoeCase, device: str) -> Check:
    """Against the reference; where that takes long, against PyTorch's operator in float32."""
    on_host, inputs = cdmoe_inputs(case), cdmoe_inputs(case, device)
    options = {"num_experts_per_tok": case.picks, "weights_inside": case.weights_inside}
    actual = libraries.kernels.cdmoe(*inputs, **options).cpu()
    large = case.tokens * case.keys**2 * case.picks > 1e7
    expected = expected_cdmoe(case, on_host) if large else libraries.reference.cdmoe(*on_host, **options)
    return Check(f"cdmoe {title_of(name, case)}", error(actual, expected), LIMITS[case.dtype])


def check_graph(libraries: Libraries, dtype: torch.dtype, window: int, steps: int = 6) -> Check:
    """Decoding from one captured graph: lengths grow on the device, inputs change under fixed addresses."""
    first = AttentionCase(past=(40, 3), new=1, heads=8, kv_heads=2, size=64, window=window, spare=steps, dtype=dtype)
    static = attention_inputs(first, "cuda")
    expected_cache, lengths = attention_inputs(first).past, attention_inputs(first).past_lengths
    output = torch.empty_like(static.query)
    fixed = {"num_heads": first.heads, "scale": first.scale, "keep_window_size": window, "output": output}

    def step() -> None:
        libraries.kernels.attention(*static.tensors(), static.past, static.past_lengths, **fixed)
        static.past_lengths.add_(1)

    torch.cuda.synchronize()
    warm_up = torch.cuda.Stream()
    with torch.cuda.stream(warm_up):  # what is loaded lazily must be there before a capture
        libraries.kernels.attention(*static.tensors(), static.past.clone(), static.past_lengths, **fixed)
    warm_up.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    outputs, expected = [], []
    for number in range(steps):
        new = attention_inputs(dataclasses.replace(first, seed=number + 1))
        for tensor, value in zip(static.tensors(), new.tensors(), strict=True):
            tensor.copy_(value)
        graph.replay()
        outputs.append(output.cpu())
        host = AttentionInputs(*new.tensors(), expected_cache, lengths)
        expected.append(call(libraries.reference, first, host, expected_cache))
        lengths += 1
    title = f"graph of a decoding step, w {window} {str(dtype).removeprefix('torch.')}"
    return Check(title, error(torch.cat(outputs), torch.cat(expected)), LIMITS[dtype])


def all_checks(libraries: Libraries, device: str = "cuda") -> Iterator[Check]:
    """Every comparison, the quick ones first."""
    for dtype in LIMITS:
        for name, case in attention_cases():
            yield check_attention(libraries, name, dataclasses.replace(case, dtype=dtype), device)
        for name, case in varied_cases():
            case = dataclasses.replace(case, dtype=dtype)
            yield check_separate(libraries, name, case, device)
            yield check_padded(libraries, name, case, device)
        for chunks in CHUNKS:
            yield check_bounded(libraries, dtype, chunks, device)
        for name, moe_case in cdmoe_cases():
            yield check_cdmoe(libraries, name, dataclasses.replace(moe_case, dtype=dtype), device)
    if device == "cuda":
        for dtype in LIMITS:
            for window in (0, 20):
                yield check_graph(libraries, dtype, window)
    for name, case in large_cases():
        yield check_large(libraries, name, case, device)
