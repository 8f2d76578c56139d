import dataclasses
import json
import shutil

import pytest

from doge_export.assets import bundled
from doge_export.package import read_manifest, write_manifest
from doge_export.quantization import texts as texts_module


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS", {"calibration": 200, "evaluation": 200})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Long enough to measure by."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("Once upon a time, there was a little cat named Tom. He lived by the river. " * 12)
    return file


@pytest.fixture
def copy(nano_folder, tmp_path):
    return shutil.copytree(nano_folder, tmp_path / "copy")


def test_quantize_adds_a_graph_and_says_what_it_lost(run, copy, text):
    result = run("quantize", copy, "--precision", "int8", "--eval-text", text, "--max-kl", 0.1)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("onnx/model_quantized.onnx  2.")
    assert "KL 0.0" in line
    assert "perplexity" in line
    assert line.endswith("text.txt")
    assert run("verify", copy).exit_code == 0
    shown = run("inspect", copy).stdout
    assert "onnx/model_quantized.onnx" in shown
    assert "com.microsoft.MatMulNBits" in shown
    assert "quality.kl_mean" in shown
    first = run("generate", copy, "Once upon a time", "--precision", "int8", "--max-new-tokens", 5)
    assert first.exit_code == 0
    assert first.stdout.strip()


def test_quantize_json(run, copy, text):
    result = run("quantize", copy, "--precision", "int8", "--eval-text", text, "--max-kl", 0.1, "--json", "-q")
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["graphs"]["onnx/model_quantized.onnx"]["quality"]["text"] == "text.txt"
    assert {*facts["manifest"]["graphs"]} == {"onnx/model.onnx", "onnx/model_quantized.onnx"}


def test_a_limit_that_is_exceeded_fails_the_command(run, copy, text):
    result = run("quantize", copy, "--precision", "int8", "--eval-text", text, "--max-kl", "0")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "int8 loses too much" in result.stderr
    assert not (copy / "onnx" / "model_quantized.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to add: --precision int8, int4, fp16 or q4f16."),
        (["--precision", "fp8"], "'fp8' is not"),
        (["--precision", "int3"], "'int3' is not one of"),
        (["--quantize", "int8"], "--quantize is called --precision: write --precision int8."),
        (["--dtype", "fp16"], "--dtype is called --precision: write --precision fp16."),
        (["--quantize", "float32"], "--quantize is called --precision."),
        (["--precision", "float16"], "'float16' is called fp16."),
        (["--precision", "int8", "--max-kl", "-1"], "max KL is -1.0"),
        (["--precision", "int8", "--eval-text", "nowhere"], "nowhere is not a file"),
        (["--precision", "int4", "--calibration", "nowhere"], "nowhere is not a file"),
    ],
)
def test_bad_requests(run, nano_folder, options, message):
    result = run("quantize", nano_folder, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_not_an_exported_folder(run, tmp_path):
    result = run("quantize", tmp_path, "--precision", "int8")
    assert result.exit_code == 2
    assert "is not an exported folder" in result.stderr


def test_a_folder_without_a_float32_graph(run, copy):
    """Such as that of an engine."""
    graphs = {"engine/model.engine": read_manifest(copy).graphs["onnx/model.onnx"]}
    write_manifest(copy, dataclasses.replace(read_manifest(copy), target="tensorrt", graphs=graphs))
    result = run("quantize", copy, "--precision", "int8")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"doge-export: error: {copy} has no onnx/model.onnx to quantise: it was made for tensorrt; export"
    )
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-kl", "0.1"], "add --precision int8"),
        (["--precision", "int8", "--target", "canonical"], "quantised by the compiler"),
        (["--precision", "int8", "--calibration", "/nosuch"], "text /nosuch is not a file"),
        (["--quantize", "int8"], "--quantize is called --precision"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_onnx_refuses_before_it_reads(run, tmp_path, options, message, dry_run):
    result = run("onnx", bundled("doge-nano"), tmp_path / "out", *options, *dry_run)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_fp16_beside_float32(run, nano_folder, copy, text):
    result = run("quantize", copy, "--precision", "fp16", "--eval-text", text)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("onnx/model_fp16.onnx  3.")
    assert "(limit 0.001)" in line
    shown = run("inspect", copy, "--all").stdout
    assert "largest.MatMul.magnitude" in shown and "float16" in shown
    story = ["Once upon a time", "--max-new-tokens", 8, "--greedy"]
    half, exact = (
        run("generate", *arguments).stdout
        for arguments in ([copy, *story, "--precision", "fp16"], [nano_folder, *story])
    )
    assert half == exact != ""


@pytest.mark.parametrize("command", [["generate", "Hello"], ["chat"]])
def test_a_precision_that_is_not_there(run, nano_folder, command):
    name, *arguments = command
    result = run(name, nano_folder, *arguments, "--precision", "int4", stdin="")
    assert result.exit_code == 2
    assert "has no int4 graph (it has fp32)" in result.stderr
