"""How fast the kernels are beside what PyTorch has, for gpu_check.py.

A call is timed inside a replayed CUDA graph, so that launches from Python cost nothing, over copies of the data that
are together larger than the L2 cache, so that every byte comes from memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable

import torch
from operator_cases import AttentionCase, AttentionInputs, CdmoeCase, attention_inputs, cdmoe_inputs
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from doge_export.model import operators
from doge_export.plugin.library import KernelCache, KernelLibrary

Call = Callable[[int], object]
"""Runs on copy number i of the data."""

HEADS = ((2, 1), (4, 2), (6, 3), (8, 4))
"""Query and key/value heads of the published models: 20M, 60M, 160M, 320M."""
SIZE = 128
WINDOW = 2048


@dataclasses.dataclass
class Timing:
    """One point.

    seconds: of a call of ours. bytes_moved: that it cannot do without. rivals: seconds of others; who could not run
    is in `notes`. selecting: seconds of ours where a window leaves keys out, if measured.
    """

    name: str
    seconds: float
    bytes_moved: int
    rivals: dict[str, float] = dataclasses.field(default_factory=dict)
    selecting: float | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes_moved / self.seconds

    def speedup(self) -> float | None:
        """Times as fast as the fastest rival."""
        return min(self.rivals.values()) / self.seconds if self.rivals else None

    def challenge(self, name: str, call: Call, copies: int) -> None:
        """Times a rival. Whatever it dies of, the report goes on."""
        try:
            self.rivals[name] = time_call(call, copies)
        except Exception as problem:
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize()
            first_line = (str(problem).splitlines() or [""])[0]
            self.notes.append(f"{name} did not run: {type(problem).__name__}: {first_line}")


def time_call(call: Call, copies: int) -> float:
    """Seconds of one call: the median over replays of a graph of many."""
    for copy in range(min(copies, 3)):
        call(copy)
    torch.cuda.synchronize()
    estimate = _elapsed(lambda: [call(copy) for copy in range(copies)]) / copies
    count = copies * max(1, min(50, round(2e-3 / estimate / copies)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(count):
            call(number % copies)
    graph.replay()
    seconds = statistics.median(_elapsed(graph.replay) for _ in range(5)) / count
    graph.reset()
    return seconds


def _elapsed(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def copies_for(bytes_of_one: int, at_most: int = 64) -> int:
    """How many copies of the data are thrice the L2 cache, within a quarter of the memory."""
    device = torch.cuda.get_device_properties(0)
    wanted = -(-3 * device.L2_cache_size // bytes_of_one)
    return max(1, min(wanted, device.total_memory // 4 // bytes_of_one, at_most))


def copy_bandwidth() -> float:
    """Bytes a second of a device copy of 2 GiB, read and written ones both counted."""
    source = torch.randint(256, (2**31,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / time_call(lambda _: target.copy_(source), 1)


def projections(tokens: int, heads: int, kv_heads: int) -> Timing:
    """cuBLAS on the query, key and value projections of a layer: the company that a decoding step keeps."""
    hidden, width = heads * SIZE, (heads + 2 * kv_heads) * SIZE
    copies = copies_for(2 * hidden * width)
    weights = torch.randn(copies, width, hidden, dtype=torch.float16, device="cuda") / hidden**0.5
    x = torch.randn(tokens, hidden, dtype=torch.float16, device="cuda")
    seconds = time_call(lambda copy: F.linear(x, weights[copy]), copies)
    return Timing(f"projections by cuBLAS {heads}/{kv_heads}, tokens {tokens}", seconds, 2 * hidden * width)


def attention_case(heads: int, kv_heads: int, batch: int, past: int, new: int, window: int = 0) -> AttentionCase:
    """A call in float16."""
    counts = {"heads": heads, "kv_heads": kv_heads, "score_heads": kv_heads, "size": SIZE}
    return AttentionCase(past=(past,) * batch, new=new, window=window, spare=0, dtype=torch.float16, **counts)


def new_tokens(case: AttentionCase) -> AttentionInputs:
    """Inputs beside a small cache of their own, which is not used."""
    return attention_inputs(dataclasses.replace(case, past=(0,) * len(case.past)), "cuda")


def random_caches(case: AttentionCase) -> list[KernelCache]:
    """As many caches as are beyond the L2 cache together."""
    batch, capacity = len(case.past), case.capacity
    shape = (batch, case.kv_heads, capacity, case.size)

    def fresh() -> KernelCache:
        keys, values = (torch.randn(shape, dtype=case.dtype, device="cuda") for _ in range(2))
        return KernelCache(keys, values, 1 + torch.randn(batch, case.score_heads, capacity, device="cuda") / 2)

    return [fresh() for _ in range(copies_for(4 * batch * case.kv_heads * capacity * case.size))]


def our_call(library: KernelLibrary, case: AttentionCase, new: AttentionInputs, caches: list[KernelCache]) -> Call:
    """The kernels, in place in one of the caches."""
    lengths = torch.tensor(case.past, dtype=torch.int32, device="cuda")
    output = torch.empty_like(new.query)
    fixed = {"num_heads": case.heads, "scale": case.scale, "keep_window_size": case.window, "output": output}
    return lambda copy: library.attention(*new.tensors(), caches[copy], lengths, **fixed)


def decode(library: KernelLibrary, heads: int, kv_heads: int, batch: int, length: int, *, flex: bool) -> Timing:
    """One new token behind length - 1 others, against PyTorch with the scores as a bias."""
    case = attention_case(heads, kv_heads, batch, length - 1, 1)
    new, caches = new_tokens(case), random_caches(case)
    copies = len(caches)
    seconds = time_call(our_call(library, case, new, caches), copies)
    name = f"decode {heads}/{kv_heads} B {batch} T {length}"
    timing = Timing(name, seconds, batch * kv_heads * length * (4 * SIZE + 4))
    if length > WINDOW:
        selecting = dataclasses.replace(case, window=WINDOW)
        timing.selecting = time_call(our_call(library, selecting, new, caches), copies)
    query = _heads(new.query, heads)
    group = heads // kv_heads
    biases = [_wide(cache.score, group)[:, :, None].half().contiguous() for cache in caches]
    _challenge_sdpa(timing, query, caches, biases)
    if flex:
        call = _compiled_flex(group)
        timing.challenge("flex", lambda copy: call(query, *_flex_cache(caches[copy]), None), copies)
    return timing


def prefill(library: KernelLibrary, heads: int, kv_heads: int, length: int, *, flex: bool) -> Timing:
    """`length` tokens at once, against PyTorch with scores and causality as a bias, and flex with a block mask."""
    case = attention_case(heads, kv_heads, 1, 0, length)
    group = heads // kv_heads
    new = new_tokens(case)
    caches = [KernelCache(*(torch.empty_like(tensor) for tensor in new.past.tensors())) for _ in range(2)]
    copies = len(caches)
    seconds = time_call(our_call(library, case, new, caches), copies)
    timing = Timing(f"prefill {heads}/{kv_heads} T {length}", seconds, 2 * length * SIZE * 2 * (heads + kv_heads))
    timing.selecting = time_call(our_call(library, dataclasses.replace(case, window=length // 2), new, caches), copies)
    query = _heads(new.query, heads)
    cache = KernelCache(_heads(new.key, kv_heads), _heads(new.value, kv_heads), new.score.mT.contiguous())
    causal = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()
    wide = _wide(cache.score, group)[:, :, None, :]
    bias = wide.expand(1, heads, length, length).masked_fill(~causal, -torch.inf).half()
    _challenge_sdpa(timing, query, [cache], [bias.contiguous()])
    if flex:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cuda")
        call = _compiled_flex(group)
        timing.challenge("flex", lambda _: call(query, *_flex_cache(cache), mask), 1)
    return timing


def _challenge_sdpa(timing: Timing, query: Tensor, caches: list[KernelCache], biases: list[Tensor]) -> None:
    def grouped(copy: int) -> Tensor:
        cache = caches[copy]
        return F.scaled_dot_product_attention(query, cache.key, cache.value, attn_mask=biases[copy], enable_gqa=True)

    timing.challenge("sdpa grouped", grouped, len(caches))
    # Its fast kernels may take no mask with grouped heads: the same, each query head having keys of its own.
    group = query.shape[1] // caches[0].key.shape[1]
    wide = [(_wide(cache.key, group), _wide(cache.value, group)) for cache in caches]
    timing.challenge(
        "sdpa expanded",
        lambda copy: F.scaled_dot_product_attention(query, *wide[copy], attn_mask=biases[copy]),
        len(caches),
    )


def _compiled_flex(group: int) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, scores: Tensor, mask: BlockMask | None) -> Tensor:
        def with_score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return logit + scores[b, h // group, j]

        return flex_attention(query, key, value, score_mod=with_score, block_mask=mask, enable_gqa=True)

    torch._dynamo.reset()  # each size is compiled for itself, and there is a limit to how many
    return torch.compile(attend, dynamic=False)


def _flex_cache(cache: KernelCache) -> tuple[Tensor, Tensor, Tensor]:
    return cache.key, cache.value, cache.score


def _heads(tensor: Tensor, heads: int) -> Tensor:
    """[B, S, heads * D] -> [B, heads, S, D]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def _wide(tensor: Tensor, group: int) -> Tensor:
    """One entry a key/value head -> one a query head."""
    return tensor.repeat_interleave(group, dim=1)


def cdmoe(library: KernelLibrary, tokens: int) -> Timing:
    """E = 16384, k = 64, H = 1024, against PyTorch's formulation; each copy asks for other experts."""
    case = CdmoeCase(tokens=tokens, hidden=1024, keys=128, picks=64, dtype=torch.float16)
    hidden, x, y, down, up = cdmoe_inputs(case, "cuda")
    tables = [(down, up), (down.clone(), up.clone()), (down.clone(), up.clone())]
    grid = (x[..., :, None] + y[..., None, :]).flatten(-2)
    experts = grid.topk(case.picks).indices.unique().numel()
    bytes_moved = experts * case.hidden * 2 * 2
    copies = copies_for(bytes_moved, at_most=700)
    draws = [(torch.randn_like(x), torch.randn_like(y)) for _ in range(copies)]
    output = torch.empty_like(hidden)
    seconds = time_call(
        lambda copy: library.cdmoe(
            hidden, *draws[copy], *tables[copy % 3], num_experts_per_tok=case.picks, output=output
        ),
        copies,
    )
    timing = Timing(f"cdmoe tokens {tokens}", seconds, bytes_moved)
    body = operators.cdmoe._init_fn
    timing.challenge("pytorch", lambda copy: body(hidden, *draws[copy], *tables[copy % 3], case.picks), min(copies, 64))
    return timing
