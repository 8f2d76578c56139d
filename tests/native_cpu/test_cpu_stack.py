"""The native decoder against our module in PyTorch, and the laws that hold for it alone."""

from __future__ import annotations

import concurrent.futures
import copy
import os
import signal
import time

import numpy as np
import pytest
import torch
from doge_cpu import BAD_ARGUMENT, INT8, SCREEN, TOO_LONG, UNSUPPORTED, CpuError
from doge_runs import assert_equal_to_rounding, distinct_ids, left_padded, module_logits
from random_doge import MOE

LENGTH = 60
CHUNKS = [1, 1, 1, 17, 1, 1, 20, 18]
BOUND = 5e-5
"""Of the size of the logits; the bar is 2e-4 and 1e-5 is usual."""

MODELS = {
    "dense": {},
    "tied, biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "odd": {"hidden_size": 72, "intermediate_size": 50, "head_dim": 18, "vocab_size": 333},
    "wide heads": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "moe": MOE,
    "moe, more picks than keys": {"is_moe": True, "num_experts": 30, "num_experts_per_tok": 9},
    "many threads": {},
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.3 * i for i in range(8)],
    },
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("routing", ["per-token", "reference"])
def test_as_the_module(library, random_module, packed, name, routing):
    if routing == "reference" and "moe" not in name:
        pytest.skip("nothing is routed")
    module = random_module(routing, **MODELS[name])
    file = packed(module, per_token=routing == "per-token")
    vocabulary = module.architecture.vocab_size
    ids, mask = distinct_ids(2, LENGTH, vocabulary), left_padded(LENGTH, 0, 9)
    expected, in_pieces = module_logits(module, ids, mask), module_logits(module, ids[:1], chunks=CHUNKS)
    for instruction_set in library.usable if name in ("dense", "odd", "moe") else [None]:
        model = library.open(file, 8 if name == "many threads" else 2, instruction_set)
        logits = model.logits(ids, mask)
        assert_equal_to_rounding(logits[0], expected[0], BOUND)
        assert_equal_to_rounding(logits[1, 9:], expected[1, 9:], BOUND)
        assert_equal_to_rounding(model.logits(ids[:1], chunks=CHUNKS), in_pieces, BOUND)


@pytest.mark.parametrize("name", ROPES)
def test_every_rope(library, random_module, packed, name):
    module = random_module(rope_parameters={"rope_theta": 10000.0} | ROPES[name], num_hidden_layers=1)
    model, ids = library.open(packed(module)), distinct_ids(1, LENGTH)
    for chunks in ([30, 1, 1, 28], [LENGTH]):
        assert_equal_to_rounding(model.logits(ids, chunks=chunks), module_logits(module, ids, chunks=chunks), BOUND)


@pytest.fixture(params=["dense", "moe"])
def model(request, library, random_module, packed):
    return library.open(packed(random_module(**(MOE if request.param == "moe" else {}))), 2)


@pytest.mark.parametrize("cache", [32, INT8], ids=["float32 cache", "int8 cache"])
def test_a_later_token_changes_no_earlier_logit(model, cache):
    ids = distinct_ids(2, 40)
    changed = ids.copy()
    changed[:, 17] = (changed[:, 17] + 1) % 320
    before, after = model.logits(ids, cache=cache), model.logits(changed, cache=cache)
    np.testing.assert_array_equal(before[:, :17], after[:, :17])
    assert (before[:, 17:] != after[:, 17:]).any()


def test_pieces_padding_and_neighbours_change_nothing(model):
    ids, mask = distinct_ids(3, 40), left_padded(40, 0, 5, 12)
    together = model.logits(ids, mask, [30, 1, 9])
    for row, begin in enumerate((0, 5, 12)):
        alone = model.logits(ids[row : row + 1, begin:])
        assert_equal_to_rounding(together[row : row + 1, begin:], alone, BOUND)
    changed = ids.copy()
    changed[2, :12] = changed[2, :12][::-1]
    np.testing.assert_array_equal(model.logits(changed, mask)[2, 12:], model.logits(ids, mask)[2, 12:])


@pytest.mark.parametrize("cache", [32, INT8], ids=["float32 cache", "int8 cache"])
@pytest.mark.parametrize("length", [0, 1, 40, 64, 257])
def test_a_saved_state_goes_on(library, random_module, packed, cache, length):
    """In a state that held something else, to the bit, beyond the window of 20 and with padding."""
    model = library.open(packed(random_module(max_length=300), max_length=300), 2)
    ids, mask = np.tile(distinct_ids(2, 60), (1, 5)), left_padded(300, 0, 30)
    saved, other = model.state(2, cache), model.state(2, cache)
    if length:
        saved.run(ids[:, :length], mask[:, :length])
    other.run(ids[::-1, :33])
    content = saved.content()
    other.load(content)
    assert other.length == length and np.array_equal(other.content(), content)
    rest = slice(length, length + 7)
    np.testing.assert_array_equal(saved.run(ids[:, rest], mask[:, rest]), other.run(ids[:, rest], mask[:, rest]))


def test_content_of_no_state_changes_nothing(model):
    state, ids = model.state(2), distinct_ids(2, 44)
    state.run(ids[:, :40])
    content = state.content()

    def changed(place, number):
        wrong = content.copy()
        wrong.view(np.int32)[place] = number
        return wrong

    # batch, kind of cache, length, slots; then the counts of the first row
    given = [changed(at, number) for at, number in ((0, 1), (1, 8), (2, 39), (2, -1), (3, 39), (3, 10**9), (11, 2**20))]
    for each in (*given, content[:-1], content[:9]):
        with pytest.raises(CpuError) as caught:
            state.load(each)
        assert caught.value.status == BAD_ARGUMENT
    assert state.length == 40 and np.array_equal(state.content(), content)


@pytest.mark.parametrize("chunks", [[1500], [1] * 1500, [7] * 214 + [2], [600, 1, 1, 898]], ids=lambda c: str(c[0]))
@pytest.mark.parametrize("cache", [32, INT8], ids=["float32 cache", "int8 cache"])
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_a_bounded_state_answers_as_an_unbounded_one(library, random_module, packed, cache, moe, chunks):
    """Ties too, since tokens repeat; and padding. Memory stays where it was.

    Of an int8 cache, about as far from a float32 one as unbounded: weights of values are rounded to 7 bits by 64 keys,
    and the 20 keys that are kept come to lie in one such block, beside the largest of them.
    """
    model = library.open(packed(random_module(max_length=1500, **(MOE if moe else {})), max_length=1500), 2)
    ids, mask = np.random.default_rng(0).integers(0, 320, (2, 1500)), left_padded(1500, 0, 30)
    bounded, whole, exact = model.state(2, cache).bound(), model.state(2, cache), model.state(2)
    start, errors = 0, []
    for size in chunks:
        here = slice(start, start := start + size)
        found, expected = (state.run(ids[:, here], mask[:, here], keep=1) for state in (bounded, whole))
        if start > 30 and cache != INT8:
            assert_equal_to_rounding(found, expected, BOUND)
        elif start > 30:
            truth = exact.run(ids[:, here], mask[:, here], keep=1)
            errors.append([np.abs(each - truth).mean() for each in (found, expected)])
        elif cache == INT8:
            exact.run(ids[:, here], mask[:, here])
    if cache == INT8:
        ours, unbounded = np.mean(errors, axis=0)
        assert 0 < ours <= (1.5 if len(errors) > 100 else 1.8) * unbounded
    assert bounded.length == whole.length == 1500 and 20 <= bounded.slots <= 20 + 512
    assert bounded.bytes <= whole.bytes / 1.9
    with pytest.raises(CpuError, match="were dropped"):
        bounded.rewind(1499)
    assert bounded.length == 1500
    bounded.rewind(0)
    again = model.state(2, cache).bound()
    np.testing.assert_array_equal(bounded.run(ids[:, :9]), again.run(ids[:, :9]))


def test_a_bounded_state_is_saved_and_goes_on(library, random_module, packed):
    model = library.open(packed(random_module(max_length=1500), max_length=1500), 2)
    ids, states = np.random.default_rng(0).integers(0, 320, (1, 1500)), [model.state(1).bound() for _ in range(2)]
    states[0].run(ids[:, :1000])
    states[1].load(states[0].content())
    with pytest.raises(CpuError, match="another kind"):
        model.state(1).load(states[0].content())
    found, expected = (state.run(ids[:, 1000:]) for state in states)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bounded", [False, True])
def test_a_smaller_window_is_that_of_a_model_trained_with_it(library, random_module, packed, bounded):
    """The same weights with another keep_window_size, and with none: what a token sees is the state's window alone."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}  # the same in any pieces

    def opened(window):
        module = random_module(keep_window_size=window, max_length=300, **rope)
        return library.open(packed(module, max_length=300), 2)

    expected = opened(8).state(1).run(ids := np.random.default_rng(0).integers(0, 320, (1, 300)))
    for window in (20, 10**6):
        model = opened(window)
        for chunks in ([300], [100, *[1] * 200]):
            state, start, found = model.state(1).window(8), 0, []
            state = state.bound() if bounded else state
            for size in chunks:
                found.append(state.run(ids[:, start : (start := start + size)]))
            assert_equal_to_rounding(np.concatenate(found, axis=1), expected, BOUND)
            assert state.slots == 300 if not bounded or len(chunks) == 1 else state.slots <= 8 + 64
        for wrong in (0, -1, *([21] if window == 20 else [])):
            with pytest.raises(CpuError, match="a window of"):
                model.state(1).window(wrong)
        with pytest.raises(CpuError, match="not empty"):
            state.window(8)
    # Of a model that keeps every key any number is a window; one beyond the longest sequence drops nothing.
    state = model.state(1).window(2**31 - 1)
    state = state.bound() if bounded else state
    assert_equal_to_rounding(state.run(ids), model.state(1).run(ids), BOUND)
    assert state.slots == 300


@pytest.mark.parametrize("window", [20, 100, 150])
def test_memory_at_twice_the_window_is_what_it_stays(library, random_module, packed, window):
    model = library.open(packed(random_module(keep_window_size=window, max_length=3000), max_length=3000), 1)
    state, ids, seen = model.state(1).bound(), np.random.default_rng(0).integers(0, 320, (1, 3000)), {}
    for place in range(1200):
        state.hidden(ids[:, place : place + 1])
        seen[place + 1] = state.bytes
        assert state.slots <= window + max(window, 64)
    assert seen[2 * window] == seen[1200]


def test_what_cannot_be_bounded(library, random_module, packed):
    with pytest.raises(CpuError) as caught:
        library.open(packed(random_module(keep_window_size=10**6)), 1).state(1).bound()
    assert caught.value.status == UNSUPPORTED
    module = random_module("reference", **MOE)
    with pytest.raises(CpuError, match="mixes tokens"):
        library.open(packed(module, per_token=False), 1).state(1).bound()


def test_going_back(model):
    ids, state = distinct_ids(2, 44), model.state(2)
    whole = state.run(ids)
    assert state.length == 44 and state.bytes > 0
    state.rewind(13)
    assert_equal_to_rounding(state.run(ids[:, 13:40]), whole[:, 13:40], BOUND)
    state.rewind(0)
    np.testing.assert_array_equal(state.run(ids), whole)
    with pytest.raises(CpuError, match="cannot go back to 45"):
        state.rewind(45)


def test_what_a_call_gives(model):
    """Logits of the last tokens, hidden states, the best candidates, given positions."""
    ids = distinct_ids(2, 30)
    logits = model.logits(ids)
    assert_equal_to_rounding(model.state(2).run(ids, keep=3), logits[:, -3:], BOUND)
    last = model.state(2).run(ids, keep=1)[:, -1]
    order = np.argsort(-last, kind="stable")[:, :7]
    best, values = model.state(2).candidates(ids, 7)
    np.testing.assert_array_equal(best, order)
    np.testing.assert_array_equal(values, np.take_along_axis(last, order, axis=1))
    positions = np.tile(np.arange(30), (2, 1))
    hidden = model.state(2).hidden(ids, left_padded(30, 0, 4), positions)
    assert hidden.shape == (2, 30, 64) and np.isfinite(hidden).all()


def test_hidden_states_are_the_modules(library, random_module, packed):
    module = random_module()
    model, ids, mask = library.open(packed(module)), distinct_ids(2, 30), left_padded(30, 0, 4)
    positions = np.tile(np.arange(30), (2, 1))
    with torch.no_grad():
        inputs = (torch.from_numpy(x) for x in (ids, mask, positions))
        expected = module.model(*inputs, module.empty_cache(2))[0].numpy()
    hidden = model.state(2).hidden(ids, mask, positions)
    assert_equal_to_rounding(hidden[0], expected[0], BOUND)
    assert_equal_to_rounding(hidden[1, 4:], expected[1, 4:], BOUND)


def test_states_of_several_threads_take_turns(model):
    ids = distinct_ids(4, 20)
    expected = [model.logits(ids[i : i + 1], chunks=[10, *[1] * 10]) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda i: model.logits(ids[i : i + 1], chunks=[10, *[1] * 10]), range(4))
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_requests_that_cannot_be_met_say_so(library, model):
    state, ids = model.state(1, max_length=8), distinct_ids(1, 4)
    state.run(ids)
    for call, status, text in [
        (lambda: state.run(distinct_ids(1, 5)), TOO_LONG, "5 tokens behind 4 exceed the maximum length of 8"),
        (lambda: state.run(ids + 320), BAD_ARGUMENT, "not in the vocabulary of 320"),
        (lambda: state.run(-ids - 1), BAD_ARGUMENT, "not in the vocabulary"),
        (lambda: state.run(ids, keep=5), BAD_ARGUMENT, "the logits of 5 of 4 tokens"),
        (lambda: state.candidates(ids, 321), BAD_ARGUMENT, "321 candidates of 320"),
        (lambda: state.run(ids, positions=ids * 0 + 72), BAD_ARGUMENT, "position 72"),
        (lambda: model.state(0), BAD_ARGUMENT, "a batch of 0"),
        (lambda: model.state(1, cache=4), BAD_ARGUMENT, "no cache of kind 4"),
        (lambda: model.state(1, max_length=73), BAD_ARGUMENT, "the model's is 72"),
        (lambda: library.open(model._file, 65), BAD_ARGUMENT, "65 threads"),
        (lambda: library.open(model._file, 1, "sse9"), UNSUPPORTED, "sse9 is not one of"),
    ]:
        with pytest.raises(CpuError, match=text) as caught:
            call()
        assert caught.value.status == status
    assert state.length == 4
    assert_equal_to_rounding(state.run(ids), model.logits(np.concatenate([ids, ids], axis=1))[:, 4:], BOUND)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_screened_head_gives_the_same_candidates(library, random_module, packed, threads):
    """Bit for bit, also where logits are as close as float32 can tell, and equal."""
    module = random_module(tie_word_embeddings=False, vocab_size=1000, hidden_size=128)
    random = torch.Generator().manual_seed(1)
    near = torch.randn(1, 128, generator=random)
    head = module.lm_head.weight
    with torch.no_grad():
        head[:300] = near + 1e-6 * torch.randn(300, 128, generator=random)
        head[300:320] = near
        head[320:330] *= 1e3  # rows of another size have other bounds
        head[330:340] = 0
        head[340:350, ::128] = 1e4  # one weight that takes all the codes of its block
    file = packed(module)
    exact, screened = library.open(file, threads), library.open(file, threads, flags=SCREEN)
    ids = distinct_ids(6, 12, 1000)
    for count in (1, 2, 40, 256, 300):
        expected, found = (
            [state.candidates(ids, count), state.candidates(ids[:, :1], count)]
            for state in (exact.state(6), screened.state(6))
        )
        for (best, logits), (wanted, wanted_logits) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(best, wanted)
            np.testing.assert_array_equal(logits, wanted_logits)


def test_a_head_with_numbers_that_are_none_is_screened_alike(library, random_module, packed):
    """NaN counts as the lowest logit, and bounds nothing."""
    module = copy.deepcopy(random_module(tie_word_embeddings=False, vocab_size=100, hidden_size=128))
    with torch.no_grad():
        module.lm_head.weight[::3, 5] = float("nan")
        module.lm_head.weight[7:15, 9] = float("inf")
    file, ids = packed(module), distinct_ids(2, 12, 100)
    logits = library.open(file).state(2).run(ids, keep=1)[:, 0]
    order = np.argsort(-np.where(np.isnan(logits), -np.inf, logits), kind="stable")
    for flags in (0, SCREEN):
        for count in (1, 5, 40, 100):
            best, values = library.open(file, 2, flags=flags).state(2).candidates(ids, count)
            np.testing.assert_array_equal(best, order[:, :count])
            np.testing.assert_array_equal(values, np.take_along_axis(logits, best, axis=1))


def test_gates_far_below_zero_are_closed(library, random_module, packed):
    """exp of such a gate's negative is no float."""
    module = copy.deepcopy(random_module(mlp_bias=True))
    with torch.no_grad():
        for layer in module.model.layers:
            layer.mlp.gate_proj.bias[::2] -= torch.linspace(80, 400, 48)
    ids = distinct_ids(1, 20)
    for instruction_set in library.usable:
        logits = library.open(packed(module), 2, instruction_set).logits(ids)
        assert_equal_to_rounding(logits, module_logits(module, ids), BOUND)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_goes_on_alone(library, random_module, packed):
    """It has none of the pool's threads: runs must not wait for them, nor closing."""
    model, ids = library.open(packed(random_module()), 3, flags=SCREEN), distinct_ids(1, 20)
    state = model.state()
    state.run(ids[:, :10])
    expected = model.logits(ids)
    child = os.fork()
    if child == 0:
        same = np.array_equal(model.logits(ids), expected) and state.run(ids[:, 10:]).shape == (1, 10, 320)
        library.c.doge_cpu_close(model.handle)
        os._exit(0 if same else 1)
    try:
        for _ in range(200):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.1)
        assert done and os.waitstatus_to_exitcode(status) == 0
    finally:
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    np.testing.assert_array_equal(model.logits(ids), expected)


def test_a_router_that_mixes_takes_so_many_tokens(library, random_module, packed):
    model = library.open(packed(random_module("reference", **MOE), per_token=False))
    rows = 2**20 // 60 + 1
    with pytest.raises(CpuError, match=f"{rows} rows of 60 tokens in one call, a router that mixes them takes 1048576"):
        model.state(rows).hidden(np.zeros((rows, 60), np.int64))


def test_a_long_context_is_shared_among_threads(library, random_module, packed):
    """Single tokens behind more keys than a thread takes for itself; pages of the cache end within."""
    module = random_module(
        max_length=600, max_position_embeddings=600, num_hidden_layers=1, vocab_size=600, keep_window_size=500
    )
    file, ids = packed(module, 600), distinct_ids(1, 530, 600)
    chunks = [190, *[1] * 12, 50, *[1] * 8, 255, *[1] * 15]
    expected = library.open(file, 1).logits(ids)
    for threads in (1, 2, 3, 8):
        assert_equal_to_rounding(library.open(file, threads).logits(ids, chunks=chunks), expected, BOUND)
    assert_equal_to_rounding(expected, module_logits(module, ids), BOUND)
