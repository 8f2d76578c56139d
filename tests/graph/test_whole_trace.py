"""Graphs laid together from layers against the whole module traced by torch.onnx: of one form, and equal to the bit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compositions import EVERY, MIXING, copy_of, random_module
from doge_runs import distinct_ids, left_padded
from graph_forms import form_of
from older_doge import PUBLISHED, make_checkpoint
from one_thread import open_session
from torch import fx
from whole_trace import whole_trace

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.architecture import Rope
from doge_export.graph import trace
from doge_export.model import MODULES
from doge_export.runtime.decoders.decoder import SequenceLimits
from doge_export.runtime.decoders.growing import GrowingDecoder, GrowingScoresDecoder
from doge_export.runtime.decoders.in_place import InPlaceDecoder
from doge_export.targets import TARGETS, Traits, lower
from doge_export.targets.half import HalfPrecision, prepare

GOLDEN = sorted(path.parent for path in (Path(__file__).parents[1] / "golden").glob("*/config.json"))
DECODERS = {"onnxruntime": InPlaceDecoder, "portable": GrowingDecoder, "canonical": GrowingScoresDecoder}
CAPACITY, LENGTH = 32, 24
LONG_ROPE = Rope(
    "longrope", factor=4.0, original_max_position_embeddings=16, short_factor=(1.0,) * 8, long_factor=(2.0,) * 8
)
ROPES = {
    "dynamic RoPE": {"rope": Rope("dynamic", factor=4.0), "max_position_embeddings": 16},
    "long RoPE": {"rope": LONG_ROPE, "max_position_embeddings": 64},
}
POOLINGS = {"no padding id": {}, "last token": {"pad_token_id": 3}}
POOLINGS["first padding"] = {"pad_token_id": 3, "first_pad_pooling": True}
TASKS = ("feature-extraction", "text-classification")


def of_task(task, seed=0, **changes):
    """A random module; `changes` are those of `BASE`."""
    labels = ("a", "b", "c") if task == "text-classification" else ()
    trunk = random_module(changes, seed, cdmoe_routing="per-token")
    architecture = dataclasses.replace(trunk.architecture, task=task, labels=labels)
    torch.manual_seed(seed)
    module = MODULES[task](architecture, "per-token").eval()
    module.model = trunk.model
    return module


def of_golden(folder):
    checkpoint = open_checkpoint(folder)
    return MODULES["text-generation"].from_tensors(checkpoint.architecture, checkpoint.tensors, max_length=64)


MODULES_BY_NAME: dict[str, Callable] = {}
for _name in EVERY:
    MODULES_BY_NAME[_name] = functools.partial(random_module, EVERY[_name])
    for _task in TASKS:
        MODULES_BY_NAME[f"{_task}, {_name}"] = functools.partial(of_task, _task, **EVERY[_name])
for _name in MIXING:
    MODULES_BY_NAME[f"{_name} per token"] = functools.partial(random_module, EVERY[_name], cdmoe_routing="per-token")
for _name, _changes in ROPES.items():
    MODULES_BY_NAME[_name] = functools.partial(random_module, _changes, max_length=CAPACITY)
for _name, _changes in POOLINGS.items():
    MODULES_BY_NAME[f"text-classification, {_name}"] = functools.partial(of_task, "text-classification", **_changes)
for _folder in GOLDEN:
    MODULES_BY_NAME[_folder.name] = functools.partial(of_golden, _folder)
MIXED = "M5, values from a table, dynamic RoPE"
_changes = EVERY["M5"] | EVERY["values from a table"] | ROPES["dynamic RoPE"]
MODULES_BY_NAME[MIXED] = functools.partial(random_module, _changes, max_length=CAPACITY)

SIZES = ("22M", "20M", "60M", "20M-MoE")

QUICK = {MIXED, "ratio of all", "text-classification, first padding"}
"""One of each mechanism: every word of the translation is in one of them. Those of the first are independent of each
other, and tracing a module whole takes most of this file's time."""
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODULES_BY_NAME]


@functools.cache
def traces(name):
    """(module, its graph laid together, its graph traced whole)."""
    module = MODULES_BY_NAME[name]()
    return module, trace(module), whole_trace(module)


def traits_of(module, static_rope=False):
    architecture = module.architecture
    mixes = architecture.moe is not None and architecture.moe.mixes_tokens
    return Traits(
        cached=architecture.task == "text-generation",
        fully_masked_rows=architecture.may_fully_mask_rows or mixes,
        static_rope=static_rope and architecture.rotates_keys and architecture.trained_length is None,
        max_length=CAPACITY,
    )


def decoded(model, target, module):
    """Logits of prompts in pieces, padded and not."""
    decoder = DECODERS[target](open_session(model), SequenceLimits(CAPACITY, CAPACITY, False))
    ids, mask = distinct_ids(3, LENGTH, module.architecture.vocab_size), left_padded(LENGTH, 0, 5, 13)
    found = []
    for given in (None, mask):
        decoder.reset(len(ids))
        for piece in (slice(0, 20), slice(20, 21), slice(21, LENGTH)):
            found.append(decoder.forward(ids[:, piece], None if given is None else given[:, piece]))
    return found


def classified(model, target, module):
    """What a task without a cache answers, for rows padded on either side."""
    ids, mask = distinct_ids(3, LENGTH, module.architecture.vocab_size), left_padded(LENGTH, 0, 5, 13)
    session = open_session(model)
    return [session.run(None, {"input_ids": ids[:, ::step], "attention_mask": mask[:, ::step]})[0] for step in (1, -1)]


def assert_equal_to_the_bit(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_one_form(name):
    _, found, expected = traces(name)
    found, expected = form_of(found), form_of(expected)
    for place, (one, other) in enumerate(zip(found["steps"], expected["steps"], strict=False)):
        assert one == other, place
    assert found == expected


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("target", DECODERS)
@pytest.mark.parametrize("name", NAMES)
def test_equal_after_lowering(name, target, half):
    module, *graphs = traces(name)
    if target == "canonical" and module.architecture.may_fully_mask_rows:
        pytest.skip("has no operator for it, by contract")
    answers = []
    for graph in graphs:
        model = copy_of(graph)
        lower(model, TARGETS[target], traits_of(module, static_rope=half))
        if half:
            prepare(model)
            HalfPrecision()(model)
        cached = module.architecture.task == "text-generation"
        answers.append((decoded if cached else classified)(model, target, module))
    assert np.isfinite(answers[0][0][0]).all()
    assert_equal_to_the_bit(*answers)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size, tmp_path):
    make_checkpoint.make(size, tmp_path / "checkpoint", next(iter(PUBLISHED[size])))
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    module = MODULES["text-generation"].from_tensors(checkpoint.architecture, checkpoint.tensors)
    graphs = trace(module), whole_trace(module)
    found, expected = (form_of(graph) for graph in graphs)
    assert found == expected
    for target in ("onnxruntime", "portable"):
        answers = []
        for graph in graphs:
            model = graph.clone()
            lower(model, TARGETS[target], traits_of(module))
            answers.append(decoded(model, target, module))
        assert_equal_to_the_bit(*answers)


def test_alike_layers_are_recorded_once(monkeypatch):
    recorded = []
    record = fx.Tracer.trace
    monkeypatch.setattr(
        fx.Tracer, "trace", lambda self, root, *rest: recorded.append(root) or record(self, root, *rest)
    )
    module = random_module({"num_hidden_layers": 5})
    trace(module)
    assert recorded == [module, module.model.layers[0]]


def test_layers_that_differ():
    """Of another window or another feed-forward layer: each keeps what is its own."""
    module = random_module({"num_hidden_layers": 4, "keep_window_size": 9})
    other = random_module({"num_hidden_layers": 4, "keep_window_size": 9, "gated_mlp": False}, seed=1)
    module.model.layers[1] = other.model.layers[1]
    module.model.layers[2].self_attn.keep_window_size = 4
    found = trace(module)
    windows = [node.attributes["keep_window_size"].value for node in found.graph if node.domain == "doge"]
    assert windows == [9, 9, 4, 9]
    assert form_of(found) == form_of(whole_trace(module))


def test_what_has_no_translation_is_named():
    module = random_module({"num_hidden_layers": 1})
    module.model.layers[0].mlp.forward = lambda x: torch.erf(x)
    with pytest.raises(NotImplementedError, match=r"no ONNX .*erf.* called by model\.layers\.0"):
        trace(module)
