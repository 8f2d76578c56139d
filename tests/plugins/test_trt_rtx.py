"""The real parser and builder of TensorRT for RTX take our nodes through the plugin, without a GPU and a driver."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from tensorrt_on_cpu import in_a_process

B, S, HEADS, KV_HEADS, D, C = 1, 4, 4, 2, 64, 32
ROUTING_HEADS, KEYS, EXPERTS = 2, 16, 256


@pytest.fixture
def rtx(monkeypatch, tmp_path):
    """TensorRT for RTX, with the name by which its parser opens it: its wheel has libtensorrt_rtx.so.1 alone."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("no TensorRT for RTX: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")
    (library,) = Path(spec.origin).parent.glob("libtensorrt_rtx.so.*")
    (tmp_path / "libtensorrt_rtx.so").symlink_to(library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


def model(type_name: str, **attention: object) -> bytes:
    """One DynamicMaskAttention and, over its output, one CDMoE."""
    real = getattr(TensorProto, type_name)
    width = HEADS * D
    cache, scores, slots = [B, KV_HEADS, C, D], [B, KV_HEADS, C], [B, KV_HEADS, C]
    bounded = bool(attention.get("bounded"))
    inputs = {
        "query": (real, [B, S, width]),
        "key": (real, [B, S, KV_HEADS * D]),
        "value": (real, [B, S, KV_HEADS * D]),
        "score": (TensorProto.FLOAT, [B, S, KV_HEADS]),
        "past_key": (real, cache),
        "past_value": (real, cache),
        "past_score": (TensorProto.FLOAT, scores),
        "past_lengths": (TensorProto.INT32, [B]),
        **({"new_lengths": (TensorProto.INT32, [B]), "past_slots": (TensorProto.INT32, slots)} if bounded else {}),
    }
    experts = {
        "scores_x": (TensorProto.FLOAT, [B, S, ROUTING_HEADS, KEYS]),
        "scores_y": (TensorProto.FLOAT, [B, S, ROUTING_HEADS, KEYS]),
        "down_embed": (real, [EXPERTS, width]),
        "up_embed": (real, [EXPERTS, width]),
    }
    outputs = {
        "present_key": (real, cache),
        "present_value": (real, cache),
        "present_score": (TensorProto.FLOAT, scores),
        **({"present_slots": (TensorProto.INT32, slots)} if bounded else {}),
    }
    common = {"domain": "doge", "plugin_namespace": "doge", "plugin_version": "1"}
    nodes = [
        helper.make_node("DynamicMaskAttention", [*inputs], ["attended", *outputs], "attention", **common, **attention),
        helper.make_node(
            "CDMoE", ["attended", *experts], ["output"], "moe", **common, num_experts_per_tok=4, weights_inside=0
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "two nodes",
        [helper.make_tensor_value_info(name, *each) for name, each in (inputs | experts).items()],
        [helper.make_tensor_value_info(name, *each) for name, each in {"output": (real, None), **outputs}.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("doge", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def built(library, *files):
    """What becomes of each model: layers of the network, its outputs, bytes of the engine for sm_89, log lines."""
    import tensorrt_rtx_bindings as trt

    lines = []

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, text):
            if severity <= trt.ILogger.Severity.WARNING or text.startswith("doge:"):
                lines.append(f"{severity.name}: {text}")

    logger = Logger()
    builder = trt.Builder(logger)
    assert builder.get_plugin_registry().load_library(library) is not None

    def build(file):
        lines.clear()
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
        if not parser.parse(Path(file).read_bytes()):
            return {"layers": [], "lines": [*lines]}
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        engine = builder.build_serialized_network(network, config)
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        return {
            "layers": [network.get_layer(index).type.name for index in range(network.num_layers)],
            "outputs": {output.name: [output.dtype.name, list(output.shape)] for output in outputs},
            "bytes": 0 if engine is None else engine.nbytes,
            "lines": [*lines],
        }

    return [build(file) for file in files]


ATTENTION = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": 0.125, "keep_window_size": C}


@pytest.mark.parametrize(
    ("type_name", "attributes"),
    [
        ("FLOAT16", {"bounded": 1, "alias_kv_cache": 1}),
        pytest.param("BFLOAT16", {"bounded": 0, "alias_kv_cache": 0}, marks=pytest.mark.slow),
        pytest.param("FLOAT", {"bounded": 1, "alias_kv_cache": 0}, marks=pytest.mark.slow),
    ],
)
def test_an_engine_is_built_of_our_nodes(rtx, trt_library, tmp_path, type_name, attributes):
    """And a node that is wrong gives the plugin's line in the builder's log: fields and logger are where we think."""
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(model(type_name, **ATTENTION, **attributes))
    bad.write_bytes(model(type_name, **{**ATTENTION, "num_heads": 3}, **attributes))
    (seen, refused), _ = in_a_process(built, trt_library, good, bad)
    assert seen["lines"] == []
    assert seen["layers"].count("PLUGIN_V3") == 2
    real = {"FLOAT16": "HALF", "BFLOAT16": "BF16", "FLOAT": "FLOAT"}[type_name]
    assert seen["outputs"] == {
        "output": [real, [B, S, HEADS * D]],
        "present_key": [real, [B, KV_HEADS, C, D]],
        "present_value": [real, [B, KV_HEADS, C, D]],
        "present_score": ["FLOAT", [B, KV_HEADS, C]],
        **({"present_slots": ["INT32", [B, KV_HEADS, C]]} if attributes["bounded"] else {}),
    }
    assert seen["bytes"] > 1000
    line = "doge: DynamicMaskAttention 'attention': num_heads is 3; a multiple of kv_num_heads 2 expected"
    assert f"ERROR: {line}" in refused["lines"]
    assert refused["layers"] == []
