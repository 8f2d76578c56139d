"""What other tools read of a portable folder, and that it changes nothing for those that read it already."""

from __future__ import annotations

import dataclasses
import json

import pytest
from manifests import GRAPH

from doge_export.assets import bundled
from doge_export.package import read_manifest
from doge_export.package.manifest import MODEL
from doge_export.package.tool_files import GENAI, adds_bos, transformers_js_config, write_tool_files
from doge_export.pipeline.onnx import export
from doge_export.runtime.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "Hey how are you doing?"}]
BOS = {"type": "TemplateProcessing", "special_tokens": {"<s>": {"ids": [7]}}}
BOS_FIRST = BOS | {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
NO_BOS = BOS | {"single": [{"Sequence": {"id": "A"}}]}


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable") / "out"
    export("doge-nano", folder, target="portable", max_length=96, validate=False)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_tokenizer_says_what_transformers_js_asks(portable):
    config = read(portable, "tokenizer_config.json")
    assert config["chat_template"] == (portable / "chat_template.jinja").read_text()
    assert config["add_bos_token"] is True and config["model_max_length"] == 96


def test_the_tokenizer_is_the_same_for_others(portable):
    """In transformers and in our own runtime: ids of texts, of pairs, and of conversations."""
    transformers = pytest.importorskip("transformers")
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (bundled("doge-nano"), portable))
    assert before("Once upon")["input_ids"] == after("Once upon")["input_ids"]
    assert before("a", "b")["input_ids"] == after("a", "b")["input_ids"]
    assert before.apply_chat_template(CHAT, tokenize=False) == after.apply_chat_template(CHAT, tokenize=False)
    ours, theirs = (Tokenizer.from_folder(folder) for folder in (portable, bundled("doge-nano")))
    assert ours.encode("Once upon") == theirs.encode("Once upon")
    assert ours.apply_chat_template(CHAT) == theirs.apply_chat_template(CHAT)


@pytest.mark.parametrize(
    ("post_processor", "adds"),
    [
        (BOS_FIRST, True),
        (NO_BOS, False),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BOS_FIRST]}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, NO_BOS]}, False),
        (None, False),
        ({"type": "ByteLevel"}, False),
    ],
)
def test_the_first_token_is_added_when_the_tokenizer_adds_it(post_processor, adds):
    assert adds_bos({"post_processor": post_processor}, 7) is adds
    assert not adds_bos({"post_processor": post_processor}, 8)


def test_the_configuration_stays_true(portable):
    """It has one key more, for transformers.js."""
    config, source = read(portable, "config.json"), read(bundled("doge-nano"), "config.json")
    assert config.pop("transformers.js_config") == {
        "device_config": {"wasm": {"dtype": "fp32"}, "webgpu": {"dtype": "fp32"}}
    }
    assert config == source


def test_precisions_and_large_files_for_transformers_js(portable, tmp_path):
    names = {"fp32": MODEL, "fp16": "onnx/model_fp16.onnx", "int8": "onnx/model_quantized.onnx"}
    graphs = {name: dataclasses.replace(GRAPH, precision=precision) for precision, name in names.items()}
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx_data").touch()
    manifest = dataclasses.replace(read_manifest(portable), graphs=graphs)
    assert transformers_js_config(tmp_path, manifest) == {
        "device_config": {"wasm": {"dtype": "fp16"}, "webgpu": {"dtype": "fp16"}},
        "kv_cache_dtype": {"fp16": "float16"},
        "use_external_data_format": {"model.onnx": 1},
    }


def test_expanded_weights_are_what_webassembly_takes(portable, tmp_path):
    """They have the speed of fp32 at a quarter of its download; of few bits as they are it is slower."""
    int8 = dataclasses.replace(GRAPH, precision="int8", quantization={"expanded": True})
    graphs = {MODEL: GRAPH, "onnx/model_fp16.onnx": dataclasses.replace(GRAPH, precision="fp16"), "onnx/q.onnx": int8}
    manifest = dataclasses.replace(read_manifest(portable), graphs=graphs)
    devices = transformers_js_config(tmp_path, manifest)["device_config"]
    assert devices == {"wasm": {"dtype": "q8"}, "webgpu": {"dtype": "fp16"}}


def test_weights_of_4_bits_in_the_graph_of_16_are_for_webgpu(portable, tmp_path):
    graphs = {MODEL: GRAPH, "onnx/model_q4f16.onnx": dataclasses.replace(GRAPH, precision="q4f16")}
    settings = transformers_js_config(tmp_path, dataclasses.replace(read_manifest(portable), graphs=graphs))
    assert settings["device_config"] == {"wasm": {"dtype": "fp32"}, "webgpu": {"dtype": "q4f16"}}
    assert settings["kv_cache_dtype"] == {"q4f16": "float16"}


def test_onnxruntime_genai_finds_graph_and_names(portable):
    config = read(portable, GENAI)
    decoder = config["model"]["decoder"]
    assert (portable / decoder["filename"]).is_file() and config["model"]["context_length"] == 96
    assert config["search"]["past_present_share_buffer"] is False
    found = read_manifest(portable).architecture
    assert decoder["head_size"] == found["head_dim"] and decoder["num_hidden_layers"] == found["num_hidden_layers"]


def test_writing_them_again_changes_nothing(portable):
    names = ("config.json", "tokenizer_config.json", GENAI)
    before = [(portable / name).read_bytes() for name in names]
    write_tool_files(portable, read_manifest(portable))
    assert [(portable / name).read_bytes() for name in names] == before


def test_other_targets_get_the_checkpoint_s_own_files(tmp_path):
    folder = tmp_path / "out"
    export("doge-nano", folder, max_length=64, validate=False)
    for name in ("config.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (bundled("doge-nano") / name).read_bytes()
    assert not (folder / GENAI).exists()


def test_every_graph_says_what_it_needs(portable):
    assert {name: graph.onnxruntime for name, graph in read_manifest(portable).graphs.items()} == {MODEL: "1.18"}
    card = (portable / "README.md").read_text()
    assert "onnxruntime from" in card and 'model_type: "llama"' in card and "onnxruntime_genai" in card
