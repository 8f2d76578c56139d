"""Exported folders of somebody who means harm, or was careless: one line, and nothing is run, waited for or filled."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import doge_export
from doge_export.errors import DogeExportError, RunFailed
from doge_export.package import check_digest, manifest_digest, write_manifest
from doge_export.package.manifest import GraphEntry, read_manifest
from doge_export.runtime import load
from doge_export.runtime.inspection import inspect_folder

DEEP = "[" * 100_000
LONG = "9" * 400


@pytest.fixture
def folder(nano_folder, tmp_path):
    """A copy whose files are links, so that a test replaces a file and changes none."""
    shutil.copytree(nano_folder, tmp_path / "out", copy_function=os.link)
    return tmp_path / "out"


def replaced(file: Path, content: bytes | str) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def changed(file: Path, **values) -> None:
    replaced(file, json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder: Path, message: str, **options) -> None:
    with pytest.raises(DogeExportError, match=message) as error:
        load(folder, **options)
    assert len(str(error.value).splitlines()) == 1


class TestJson:
    @pytest.mark.parametrize("name", ["doge_export.json", "tokenizer.json", "tokenizer_config.json", "config.json"])
    @pytest.mark.parametrize("content", [DEEP, f'{{"eos_token_id": {LONG}}}', '{"a": 1e999}', "[]", "", "\0", b"\xff"])
    def test_is_one_line(self, folder, name, content):
        (folder / "generation_config.json").unlink(missing_ok=True)  # so that config.json is asked for the eos token
        replaced(folder / name, content)
        refused(folder, name.replace(".", r"\."))

    def test_int_of_1e30_is_what_transformers_writes(self, folder):
        changed(folder / "tokenizer_config.json", model_max_length=int(1e30))
        load(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("max_length", 10**12),
            ("max_length", 2**24 + 1),
            ("chunkable_length", 10**12),
            ("task", ["text-generation"]),
            ("architecture", {"vocab_size": "1024"}),
            ("architecture", {"hidden_size": 10**12}),
            ("graphs", {"../model.onnx": None}),
            ("validation", {"passed": "yes"}),
            ("validation", {"skipped": 3}),
            ("seconds", "1"),
        ],
    )
    def test_a_manifest_of_wrong_types_or_sizes(self, folder, key, value):
        changed(folder / "doge_export.json", **{key: value})
        refused(folder, rf"doge_export\.json: {key} is ")

    def test_a_graph_outside_the_folder(self, folder):
        manifest = json.loads((folder / "doge_export.json").read_text())
        graph = manifest["graphs"]["onnx/model.onnx"]
        changed(folder / "doge_export.json", graphs={"../other/model.onnx": graph})
        refused(folder, "graphs is .*inside the folder")


class TestNoRegularFile:
    @pytest.mark.parametrize(
        "name",
        [
            "doge_export.json",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "chat_template.jinja",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
        ],
    )
    def test_a_named_pipe_is_not_waited_for(self, folder, name):
        if name == "config.json":
            (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        refused(folder, "is a named pipe, expected a regular file")

    def test_a_device_is_not_read(self, folder):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to("/dev/zero")
        refused(folder, "is a device")

    def test_a_folder_and_a_socket(self, folder):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").mkdir()
        refused(folder, "is a folder, expected a regular file")
        (folder / "tokenizer.json").rmdir()
        with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{short}/s")
            (folder / "tokenizer.json").symlink_to(f"{short}/s")
            refused(folder, "is a socket")

    def test_verify_and_inspect_do_not_wait(self, folder):
        os.mkfifo(folder / "onnx" / "extra")
        with pytest.raises(DogeExportError, match="onnx/extra: unexpected"):
            doge_export.verify(folder)
        with pytest.raises(DogeExportError, match="is a named pipe"):
            inspect_folder(folder)
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        with pytest.raises(DogeExportError, match=r"config\.json: no regular file"):
            doge_export.verify(folder)

    def test_a_large_file(self, folder):
        (folder / "tokenizer_config.json").unlink()
        with (folder / "tokenizer_config.json").open("wb") as stream:
            stream.truncate(2**40)
        refused(folder, "has more than 268435456 bytes")


class TestTokenizer:
    def tokenizer(self, folder, **parts):
        changed(folder / "tokenizer.json", **parts)

    def test_a_panic_is_one_line(self, folder, capfd, run_main):
        split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
        self.tokenizer(folder, pre_tokenizer=split)
        with pytest.raises(RunFailed, match=r"the tokenizer fails on this text of 43 characters: .*retry-limit"):
            load(folder).generate("a" * 40 + "bbb", max_new_tokens=1)
        capfd.readouterr()
        assert run_main("generate", folder, "a" * 40 + "bbb") == 1
        assert capfd.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("part", ["normalizer", "decoder"])
    def test_growth_is_refused(self, folder, part):
        step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}
        children = {"normalizer": "normalizers", "decoder": "decoders"}[part]
        self.tokenizer(folder, **{part: {"type": "Sequence", children: [step] * 20}})
        refused(folder, f"the {part} has 5 steps or more, which make 256 characters of one")

    @pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
    def test_bytes_of_bytes_are_refused(self, folder, part):
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        children = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[part]
        self.tokenizer(folder, **{part: {"type": "Sequence", children: [step] * 40}})
        refused(folder, f"the {part} has 5 steps or more, which make 256 characters of one")

    def test_a_map_of_characters_to_long_texts_is_refused(self, folder):
        charsmap = (4).to_bytes(4, "little") + bytes(4) + b"x" * 65 + b"\0"
        step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
        self.tokenizer(folder, normalizer=step)
        refused(folder, "the normalizer has 1 steps or more, which make 65 characters of one")
        self.tokenizer(folder, normalizer={**step, "precompiled_charsmap": "!"})
        refused(folder, "is not a tokenizer")
        self.tokenizer(folder, post_processor={"type": "TemplateProcessing", "single": [{"Sequence": 1}]})
        refused(folder, "is not a tokenizer")

    def test_templates_that_repeat_are_refused(self, folder):
        text, special = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
        tokens = {"<s>": {"id": "<s>", "ids": [0] * 100, "tokens": ["<s>"] * 100}}
        step = {"type": "TemplateProcessing", "single": [text], "pair": [text], "special_tokens": {}}
        twice = {**step, "single": [text, text]}
        for processor in (
            {**step, "single": [text] * 100},
            {**step, "single": [special] * 100 + [text]},
            {**step, "single": [special, text], "special_tokens": tokens},
            {"type": "Sequence", "processors": [twice] * 7},
        ):
            self.tokenizer(folder, post_processor=processor)
            refused(folder, r"the post_processor has \d steps or more, which make 1\d\d characters of one")

    def test_deep_sequences(self, folder):
        nested: dict = {"type": "Sequence", "normalizers": []}
        for _ in range(100):
            nested = {"type": "Sequence", "normalizers": [nested]}
        self.tokenizer(folder, normalizer=nested)
        refused(folder, "tokenizer.json")

    def test_huge_padding_and_truncation_are_not_applied(self, folder):
        padding = {
            "strategy": {"Fixed": 10**12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }
        self.tokenizer(folder, padding=padding)
        assert load(folder).generate("Once", max_new_tokens=1) is not None


@pytest.fixture
def run_main():
    """Runs a command in this process without a runner in between, so that file descriptors are those of a user."""
    from doge_export.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main.main([str(argument) for argument in arguments], prog_name="doge-export")
        return ended.value.code

    return run


class TestInterface:
    """A graph whose inputs and outputs are not those of the manifest."""

    @pytest.fixture
    def graph(self, folder):
        return onnx.load(folder / "onnx" / "model.onnx")

    def test_missing_inputs(self, folder, graph):
        name = graph.graph.input[0].name
        other = helper.make_tensor_value_info("other_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        for node in graph.graph.node:
            node.input[:] = ["other_ids" if value == name else value for value in node.input]
        graph.graph.input[0].CopyFrom(other)
        replaced(folder / "onnx" / "model.onnx", graph.SerializeToString())
        refused(folder, "it lacks the input input_ids")

    @pytest.mark.parametrize(
        ("target", "architecture", "message"),
        [
            ("onnxruntime", {"vocab_size": 4096}, "output logits is float .*1024.*, expected float .*4096"),
            ("onnxruntime", {"num_hidden_layers": 5}, r"lacks the input past_key_values\.4\.key"),
            ("onnxruntime", {"num_hidden_layers": 2**31 - 1}, r"lacks the input past_key_values\.4\.key"),
            ("onnxruntime", {"num_hidden_layers": 3}, r"has the input 'past_key_values\.3\.key'"),
            ("portable", {"vocab_size": 7}, "output logits"),
        ],
    )
    def test_sizes(self, bundled_folder, tmp_path, target, architecture, message):
        folder = tmp_path / "out"
        shutil.copytree(bundled_folder("doge-nano", target), folder, copy_function=os.link)
        known = json.loads((folder / "doge_export.json").read_text())["architecture"]
        changed(folder / "doge_export.json", architecture=known | architecture)
        refused(folder, message)

    def test_another_interface(self, folder):
        manifest = json.loads((folder / "doge_export.json").read_text())
        graph = manifest["graphs"]["onnx/model.onnx"]
        changed(folder / "doge_export.json", graphs={"onnx/model.onnx": graph | {"interface": "growing"}})
        refused(folder, "lacks the input position_ids")

    def test_another_task(self, folder):
        changed(folder / "doge_export.json", task="feature-extraction")
        refused(folder, "has the input|lacks the output")

    def test_cache_of_a_billion_heads(self, folder, graph):
        for value in [*graph.graph.input, *graph.graph.output]:
            if value.name.endswith(("key", "value")):
                value.type.tensor_type.shape.dim[1].dim_value = 2**30
        replaced(folder / "onnx" / "model.onnx", graph.SerializeToString())
        refused(folder, "damaged")

    def test_a_graph_that_fails_when_it_runs(self, folder, graph):
        """The interface is right, and inside a reshape is not."""
        out = graph.graph.output[0]
        assert out.name == "logits"
        for node in graph.graph.node:
            node.output[:] = ["inner_logits" if value == "logits" else value for value in node.output]
        graph.graph.initializer.append(helper.make_tensor("seven", TensorProto.INT64, [3], [7, 1, 1]))
        graph.graph.node.extend(
            [
                helper.make_node("Shape", ["inner_logits"], ["inner_shape"]),
                helper.make_node("Mul", ["inner_shape", "seven"], ["hostile_shape"]),
                helper.make_node("Reshape", ["inner_logits", "hostile_shape"], ["logits"]),
            ]
        )
        replaced(folder / "onnx" / "model.onnx", graph.SerializeToString())
        with pytest.raises(DogeExportError, match="fails to run the graph") as error:
            load(folder).generate("Once upon a time", max_new_tokens=1)
        assert len(str(error.value).splitlines()) == 1


class TestExternalData:
    """onnxruntime refuses external data outside the folder of a graph; this fails if it ever stops."""

    @pytest.mark.parametrize("location", ["../secret", "/tmp/secret", "a/../../secret"])
    def test_outside_the_folder_is_refused(self, tmp_path, location):
        folder = tmp_path / "out"
        (folder / "onnx" / "a").mkdir(parents=True)
        (folder / "secret").write_bytes(b"\x00\x00\x80?" * 4)
        place = location.replace("/tmp", str(folder)) if location.startswith("/") else location
        self.write(folder, place)
        from doge_export.runtime.graph import open_graph

        with pytest.raises(DogeExportError, match="damaged"):
            open_graph(folder)
        with pytest.raises(DogeExportError, match=r"cannot load .*onnx"):
            inspect_folder(folder)

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path):
        folder = tmp_path / "out"
        (folder / "onnx").mkdir(parents=True)
        (tmp_path / "secret").write_bytes(b"\x00\x00\x80?" * 4)
        (folder / "onnx" / "link").symlink_to(tmp_path / "secret")
        self.write(folder, "link")
        from doge_export.runtime.graph import open_graph

        with pytest.raises(DogeExportError, match="damaged"):
            open_graph(folder)

    def test_inside_the_folder_is_read(self, tmp_path):
        folder = tmp_path / "out"
        (folder / "onnx").mkdir(parents=True)
        (folder / "onnx" / "data").write_bytes(b"\x00\x00\x80?" * 4)
        self.write(folder, "data")
        from doge_export.runtime.graph import open_graph

        assert open_graph(folder).run(None, {})[0].tolist() == [1.0] * 4

    def write(self, folder, location):
        from manifests import minimal_manifest

        tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
        graph = helper.make_graph([helper.make_node("Identity", ["weight"], ["y"])], "g", [], [output], [tensor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (folder / "onnx" / "model.onnx").write_bytes(model.SerializeToString())
        entry = GraphEntry(precision="fp32", interface="growing", opset={"": 21}, ir_version=10, nodes=1)
        write_manifest(folder, minimal_manifest(graphs={"onnx/model.onnx": entry}))


class TestDigest:
    def test_it_pins_the_folder(self, folder):
        digest = manifest_digest(folder)
        load(folder, digest=digest).close()
        check_digest(folder, digest.upper())
        changed(folder / "doge_export.json", max_length=100)
        assert manifest_digest(folder) != digest
        refused(folder, "it is not the folder that was meant", digest=digest)
        load(folder).close()
        refused(folder, "expected 64 hexadecimal digits", digest="12")

    def test_a_forger_who_rewrites_the_manifest_is_found(self, folder):
        digest = manifest_digest(folder)
        replaced(folder / "generation_config.json", "{}")
        refused(folder, r"generation_config\.json: changed", verify=True)
        manifest = read_manifest(folder)
        (folder / "doge_export.json").unlink()
        write_manifest(folder, manifest)
        load(folder, verify=True).close()
        refused(folder, "not the folder that was meant", digest=digest)
