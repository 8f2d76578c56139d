"""What each target promises about its file: operators, versions, names, axes and size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from random_doge import CONFIG, MAX_LENGTH, random_model
from test_target_parity import VARIANTS, open_session

from doge_export.targets import TARGETS

LAYERS, KV_HEADS, SIZE, VOCAB = 2, CONFIG["num_key_value_heads"], CONFIG["head_dim"], CONFIG["vocab_size"]


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def portable(exported, variant):
    return onnx.load(exported(target="portable", **VARIANTS[variant]) / "onnx" / "model.onnx")


@pytest.fixture
def in_place(exported, variant):
    return onnx.load(exported(target="onnxruntime", **VARIANTS[variant]) / "onnx" / "model.onnx")


def axes(values):
    """Name -> (element type, axes)."""
    return {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def caches(prefix, time):
    return {
        f"{prefix}.{layer}.{part}": ("FLOAT", ["batch_size", KV_HEADS, time, SIZE])
        for layer in range(LAYERS)
        for part in ("key", "value")
    }


def operators(model):
    return Counter((node.domain, node.op_type) for node in model.graph.node)


def test_portable_is_plain_onnx(portable):
    onnx.checker.check_model(portable, full_check=True)
    assert portable.ir_version == 10
    assert {entry.domain: entry.version for entry in portable.opset_import} == {"": 21}
    assert {domain for domain, _ in operators(portable)} == {""}
    assert not portable.functions


@pytest.mark.parametrize("target", ["onnxruntime", "portable", "canonical"])
def test_nodes_come_after_what_they_read(exported, target, variant):
    """As the standard asks; onnxruntime sorts for itself, other readers do not."""
    graph = onnx.load(exported(target=target, **VARIANTS[variant]) / "onnx" / "model.onnx").graph
    known = {"", *(value.name for value in [*graph.input, *graph.initializer])}
    for node in graph.node:
        assert {*node.input} <= known, node.name
        known |= {*node.output}


def test_portable_names_and_axes(portable):
    new, past = "sequence_length", "past_sequence_length"
    total = f"{past} + {new}"
    assert axes(portable.graph.input) == {
        "input_ids": ("INT64", ["batch_size", new]),
        "attention_mask": ("INT64", ["batch_size", total]),
        "position_ids": ("INT64", ["batch_size", new]),
        **caches("past_key_values", past),
        "num_logits_to_keep": ("INT64", []),
    }
    assert axes(portable.graph.output) == {
        "logits": ("FLOAT", ["batch_size", 1, VOCAB]),
        **caches("present", total),
    }


def test_in_place_names_and_axes(in_place, variant):
    new = "sequence_length"
    # Beyond the window a score for each key/value head is ranked; within it one for each query head is made at once.
    reaches = VARIANTS[variant]["max_length"] == MAX_LENGTH
    width = LAYERS * (KV_HEADS if reaches else CONFIG["num_attention_heads"])
    # Where no frequency depends on the length, the kernel rotates by tables.
    positions = {"position_ids": ("INT64", ["batch_size", new])} if reaches else {}
    assert axes(in_place.graph.input) == {
        "input_ids": ("INT64", ["batch_size", new]),
        "attention_mask": ("INT64", ["batch_size", "capacity"]),
        **positions,
        **caches("past_key_values", "capacity"),
        "past_length": ("INT64", [1]),
        "total_length": ("INT64", [1]),
        "seqlens_k": ("INT32", ["batch_size"]),
        "total_sequence_length": ("INT32", []),
        "past_scores": ("FLOAT", ["batch_size", width, 1, "capacity"]),
        "num_logits_to_keep": ("INT64", []),
    }
    assert axes(in_place.graph.output) == {
        "logits": ("FLOAT", ["batch_size", "num_logits", VOCAB]),
        **caches("present", "capacity"),
        "new_scores": ("FLOAT", ["batch_size", width, 1, new]),
    }


def test_in_place_is_few_wide_nodes(in_place, variant):
    assert in_place.ir_version == 10
    assert {entry.domain: entry.version for entry in in_place.opset_import}.items() >= {
        "": 23,
        "com.microsoft": 1,
    }.items()
    assert not in_place.functions
    found = operators(in_place)
    assert found["com.microsoft", "GroupQueryAttention"] == LAYERS
    assert {domain for domain, _ in found} == {"", "com.microsoft"}
    # q, k, v and dt in one; gate, up and router in one; o and down of their own; two of the experts.
    routed = 2 * LAYERS if variant.startswith("moe") else 0
    assert found["", "MatMul"] == 4 * LAYERS + 1 + routed
    # Every norm but the embedding's first, and one for the heads of a layer, takes the sum before it in.
    assert found["com.microsoft", "SkipSimplifiedLayerNormalization"] == 2 * LAYERS
    assert found["", "RMSNormalization"] == 1 + LAYERS
    # Where the kernel rotates, no node does.
    assert found["", "RotaryEmbedding"] == (LAYERS if VARIANTS[variant]["max_length"] == MAX_LENGTH else 0)
    weights = {tensor.name for tensor in in_place.graph.initializer}
    assert not [node for node in in_place.graph.node if node.op_type == "Transpose" and node.input[0] in weights]


def test_selection_and_scaling_are_there_when_the_length_can_reach_them(exported, variant):
    for target in ("onnxruntime", "portable"):
        found = operators(onnx.load(exported(target=target, **VARIANTS[variant]) / "onnx" / "model.onnx"))
        reaches = VARIANTS[variant]["max_length"] == MAX_LENGTH
        selections = LAYERS if reaches else 0
        assert found["", "ScatterElements"] == selections
        assert found["", "ReduceMax"] == (1 if reaches else 0)


@pytest.mark.parametrize("keep", [None, 1, 3, 5, 9])
def test_num_logits_to_keep(exported, keep):
    """It need not be fed, and is the last token then; more than there are is all there are."""
    session = open_session(exported(target="portable", **VARIANTS["dense"]))
    ids = np.arange(10, dtype=np.int64).reshape(2, 5)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(5), (2, 1))}
    for name in caches("past_key_values", 0):
        feeds[name] = np.zeros((2, KV_HEADS, 0, SIZE), np.float32)
    every = session.run(["logits"], feeds | {"num_logits_to_keep": np.array(0)})[0]
    assert every.shape == (2, 5, VOCAB)
    fed = {} if keep is None else {"num_logits_to_keep": np.array(keep)}
    kept = session.run(["logits"], feeds | fed)[0]
    np.testing.assert_allclose(kept, every[:, -(keep or 1) :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_tied_embedding_is_stored_once(exported, target):
    """The file holds the parameters and little else: the graph takes far less than a second embedding would."""
    changes = {"tie_word_embeddings": True, "vocab_size": 4096, "num_hidden_layers": 1}
    file = exported(target=target, max_length=MAX_LENGTH, **changes) / "onnx" / "model.onnx"
    embedding = 4 * 4096 * CONFIG["hidden_size"]
    weights = 4 * sum(parameter.numel() for parameter in random_model(**changes).parameters())
    assert weights <= file.stat().st_size < weights + embedding / 4
    large = [tensor for tensor in onnx.load(file).graph.initializer if len(tensor.raw_data) == embedding]
    assert len(large) == 1


def test_in_place_caches_are_not_copied(exported):
    """One buffer bound as past and as present: what is beyond the new token stays untouched."""
    session = open_session(exported(target="onnxruntime", **VARIANTS["dense"]))
    buffers = {name: np.full((1, KV_HEADS, 12, SIZE), np.pi, np.float32) for name in caches("past_key_values", 12)}
    binding = session.io_binding()
    for name, buffer in buffers.items():
        where = ("cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        binding.bind_input(name, *where)
        binding.bind_output(name.replace("past_key_values", "present"), *where)
    feeds = {
        "input_ids": np.array([[5]]),
        "attention_mask": np.ones((1, 12), np.int64),
        "position_ids": np.array([[4]]),
        "past_length": np.array([4]),
        "total_length": np.array([5]),
        "seqlens_k": np.array([4], np.int32),
        "total_sequence_length": np.array(5, np.int32),
        "past_scores": np.ones((1, LAYERS * KV_HEADS, 1, 12), np.float32),
    }
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("new_scores", "cpu")
    binding.bind_output("logits", "cpu")
    session.run_with_iobinding(binding)
    written = np.arange(12) == 4
    for buffer in buffers.values():
        assert (buffer[:, :, ~written] == np.float32(np.pi)).all()
        assert (buffer[:, :, written] != np.float32(np.pi)).any()
