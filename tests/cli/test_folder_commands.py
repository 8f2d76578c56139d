import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from doge_export.assets import BUNDLED, bundled
from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.headers import look_into, read_headers
from doge_export.errors import DogeExportError

GOLDEN = sorted(path.parent for path in (Path(__file__).parents[1] / "golden").glob("*/golden.npz"))


@pytest.fixture
def copy(nano_folder, tmp_path):
    """A copy of the exported folder, to be damaged."""
    return Path(shutil.copytree(nano_folder, tmp_path / "copy"))


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


class TestVerify:
    def test_intact(self, run, nano_folder):
        result = run("verify", nano_folder)
        assert result.exit_code == 0
        assert result.stdout.endswith("files, all as the manifest says\n")
        assert json.loads(run("verify", nano_folder, "--json").stdout)["intact"]

    @pytest.mark.parametrize("name", ["onnx/model.onnx", "config.json", "tokenizer.json", "README.md"])
    def test_tampered_file_is_named(self, run, copy, name):
        flip_bit(copy / name)
        result = run("verify", copy)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert f"differs from its manifest: {name}: changed" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_sha256_pins_the_manifest(self, run, copy):
        digest = json.loads(run("verify", copy, "--json").stdout)["sha256"]
        assert f"sha256 of the manifest: {digest}\n" in run("verify", copy, "--sha256", digest).stdout
        manifest = copy / "doge_export.json"
        manifest.write_text(manifest.read_text() + "\n")
        assert run("verify", copy).exit_code == 0
        for options in ((), ("--json",)):
            result = run("verify", copy, "--sha256", digest, *options)
            assert (result.exit_code, result.stdout) == (2, "")
            assert "it is not the folder that was meant" in result.stderr

    @pytest.mark.parametrize("command", ["generate", "chat", "validate", "quantize", "bench", "inspect", "eval"])
    def test_every_command_that_opens_a_folder_can_verify_it_first(self, run, copy, command):
        more = {
            "generate": ["Once"],
            "quantize": ["--precision", "int8"],
            "eval": ["--text", copy / "README.md"],
        }
        (copy / "extra").write_text("x")
        result = run(command, copy, *more.get(command, []), "--verify", stdin="")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "differs from its manifest: extra: unexpected" in result.stderr

    def test_json_lists_everything(self, run, copy):
        (copy / "config.json").unlink()
        (copy / "extra").write_text("x")
        result = run("verify", copy, "--json")
        assert result.exit_code == 2
        facts = json.loads(result.stdout)
        assert not facts["intact"]
        assert facts["problems"] == ["config.json: missing", "extra: unexpected, not in the manifest"]
        assert result.stderr.count("\n") == 1


ESCAPE = "\x1b]52;c;AAAA\x07\x1b[31m"


@pytest.fixture
def escaping(copy):
    """An exported folder whose manifest holds escape sequences."""
    file = copy / "doge_export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target": f"here {ESCAPE} there"}))
    return copy


def test_a_pipe_gets_escape_sequences_unchanged(start, escaping):
    out, _ = start("inspect", escaping).communicate()
    assert f"here {ESCAPE} there".encode() in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_terminal_is_shown_escape_sequences(start, escaping):
    import os
    import pty

    ours, theirs = pty.openpty()
    process = start("inspect", escaping, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"here \\x1b]52;c;AAAA\\x07\\x1b[31m there" in seen and b"\x1b" not in seen


class TestInspect:
    def test_exported_folder(self, run, nano_folder):
        result = run("inspect", nano_folder)
        assert result.exit_code == 0
        for text in (
            "architecture",
            "hidden_size",
            "onnx/model.onnx",
            "input_ids",
            "logits",
            "MatMul",
            "not validated",
        ):
            assert text in result.stdout
        assert len(result.stdout.splitlines()) <= 40
        whole = run("inspect", nano_folder, "--all")
        assert len(whole.stdout.splitlines()) > 60 and "rms_norm_eps" in whole.stdout
        assert "[batch_size, sequence_length]" in result.stdout

    def test_json(self, run, nano_folder):
        facts = json.loads(run("inspect", nano_folder, "--json").stdout)
        graph = facts["graphs"]["onnx/model.onnx"]
        assert graph["inputs"][0] == {"name": "input_ids", "type": "int64", "shape": ["batch_size", "sequence_length"]}
        assert graph["outputs"][0]["name"] == "logits"
        assert graph["outputs"][0]["type"] == "float32"
        assert graph["outputs"][0]["shape"][-1] == facts["architecture"]["vocab_size"]
        assert sum(graph["operators"].values()) == graph["nodes"]
        assert facts["files"]["onnx/model.onnx"]["bytes"] == (nano_folder / "onnx/model.onnx").stat().st_size

    def test_what_the_graph_says_is_what_onnx_says(self, run, nano_folder):
        onnx = pytest.importorskip("onnx")
        graph = onnx.load(nano_folder / "onnx/model.onnx").graph
        facts = json.loads(run("inspect", nano_folder, "--json").stdout)["graphs"]["onnx/model.onnx"]
        assert {value["name"] for value in facts["inputs"]} == {value.name for value in graph.input}
        defaults = {initializer.name for initializer in graph.initializer}
        for value in facts["inputs"]:
            assert value.get("optional", False) == (value["name"] in defaults)
        assert [value["name"] for value in facts["outputs"]] == [value.name for value in graph.output]
        assert facts["nodes"] == len(graph.node)

    def test_checkpoint(self, run):
        model = bundled("doge-nano")
        result = run("inspect", model)
        assert result.exit_code == 0
        assert "model.safetensors" in result.stdout
        facts = json.loads(run("inspect", model, "--json").stdout)
        assert facts["architecture"]["keep_window_size"] > 0
        assert facts["tensors"] > 10

    @pytest.mark.parametrize("model", [*BUNDLED, *map(str, GOLDEN)], ids=lambda model: Path(model).name)
    def test_headers_say_what_the_whole_checkpoint_says(self, model):
        looked, opened = look_into(model), open_checkpoint(model)
        assert looked["identity"]["generation"] == opened.identity.generation
        assert looked["architecture"]["hidden_size"] == opened.architecture.hidden_size
        ours, theirs = looked["architecture"], opened.architecture.to_dict()
        if opened.identity.generation in ("G6b", "G7", "G8"):  # values of older ones may show that scores are inert
            assert ours == theirs
        assert {name for name in ours if ours[name] != theirs[name]} <= {"score", "score_heads", "ratio_mask"}

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 8, b"\xff" * 8, b"\2" + b"\0" * 7 + b"[]", b"\5" + b"\0" * 7 + b'{"a":']
    )
    def test_headers_that_are_none(self, tmp_path, content):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(DogeExportError, match="not a whole safetensors file"):
            read_headers(tmp_path / "model.safetensors")

    def test_graph_that_does_not_load(self, run, copy):
        (copy / "onnx" / "model.onnx").write_bytes(b"nonsense")
        result = run("inspect", copy)
        assert result.exit_code == 2
        assert "onnxruntime cannot load" in result.stderr
        assert result.stderr.count("\n") == 1

    def test_nothing_to_inspect(self, run, tmp_path):
        result = run("inspect", tmp_path / "nothing")
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


def test_a_folder_is_used_without_what_exports(nano_folder, tmp_path):
    """generate, chat, inspect, verify and doctor where only the base install is."""
    code = """
    import sys
    from click.testing import CliRunner
    absent = ["torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "matplotlib"]
    sys.modules.update(dict.fromkeys(absent + ["psutil"]))
    from doge_export.cli import main
    from doge_export.installing import install_command
    for arguments in (
        ["generate", sys.argv[1], "Once", "--max-new-tokens", "3"],
        ["chat", sys.argv[1], "--max-new-tokens", "3"],
        ["inspect", sys.argv[1]],
        ["inspect", "doge-nano"],
        ["inspect", "doge-nano-moe", "--json"],
        ["verify", sys.argv[1]],
        ["doctor"],
    ):
        result = CliRunner().invoke(main, arguments, input="Hello!", catch_exceptions=False)
        assert result.exit_code == 0, (arguments, result.output)
    out = ["doge-nano", "out"]
    for arguments in (
        ["validate", sys.argv[1]], ["onnx", *out], ["onnx", *out, "--dry-run"], ["convert", *out], ["demo"],
        ["quantize", sys.argv[1], "--precision", "int8"], ["trt", *out], ["trt", "doge-nano", "--dry-run"],
        ["trt", "--selftest"], ["bench", sys.argv[1], "--compare", "doge-nano"],
    ):
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 2, (arguments, result.output)
        assert "this needs the extra `export`" in result.stderr and install_command("export") in result.stderr
        assert result.stdout == "", result.stdout
        assert result.stderr.count("\\n") == 1, result.stderr
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(nano_folder)], check=True, cwd=tmp_path)


def test_the_calls_of_python_name_the_extra_too(nano_folder, tmp_path):
    code = """
    import sys
    absent = ["torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "matplotlib"]
    sys.modules.update(dict.fromkeys(absent))
    import doge_export
    from doge_export.benchmark.bench import bench
    from doge_export.pipeline.plan import plan
    for call, *arguments in (
        (doge_export.validate, sys.argv[1]), (doge_export.export, "doge-nano", "out"), (plan, "doge-nano"),
        (doge_export.quantize, sys.argv[1], ["int8"]),
        (lambda folder: bench(folder, compare="doge-nano"), sys.argv[1]),
    ):
        try:
            call(*arguments)
        except doge_export.DogeExportError as error:
            assert "this needs the extra `export`" in str(error), error
        else:
            raise AssertionError(call)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(nano_folder)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoints_are_there(name):
    assert (bundled(name) / "model.safetensors").stat().st_size < 4_000_000


def test_no_other_checkpoint_is_bundled():
    with pytest.raises(DogeExportError, match=r"no bundled checkpoint is called 'x'; there are doge-nano, "):
        bundled("x")


@pytest.mark.parametrize("arguments", [["generate", "x" * 300, "Once"], ["inspect", "x" * 300], ["verify", "x" * 300]])
def test_a_name_that_no_folder_can_have_is_one_line(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
