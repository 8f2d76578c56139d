"""`--precision fp16`: a graph in 16 bits beside the float32 one, measured, and refused where float16 ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from doge_export import DogeExportError, RunFailed, export, load
from doge_export.assets import bundled
from doge_export.package import verify_files
from doge_export.package.onnx_file import write_onnx
from doge_export.pipeline.quantize import quantize
from doge_export.quantization import texts as texts_module
from doge_export.quantization.extremes import extremes_of
from doge_export.quantization.texts import Texts
from doge_export.targets.half.extremes import by_operator

FILE = "onnx/model_fp16.onnx"
GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("doge-nano", "doge-nano-moe")
BUNDLED = [
    *[("doge-nano", target) for target in ("onnxruntime", "portable", "canonical")],
    ("doge-nano-moe", "onnxruntime"),
    *[pytest.param("doge-nano-moe", target, marks=pytest.mark.slow) for target in ("portable", "canonical")],
]


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS", {"calibration": 400, "evaluation": 800})


@pytest.fixture(scope="module")
def folders(nano_folder, nano_moe_folder, texts, tmp_path_factory):
    """A bundled model for a target, with fp16 beside float32; read only."""
    made, there = {}, dict(zip(NAMES, (nano_folder, nano_moe_folder), strict=True))

    def make(name, target):
        if (name, target) not in made:
            out = tmp_path_factory.mktemp(name) / "out"
            if target == "onnxruntime":
                shutil.copytree(there[name], out)
                made[name, target] = quantize(out, ["fp16"])
            else:
                options = {"target": target, "validate": False, "eval_text": texts["eval_text"]}
                made[name, target] = export(name, out, precisions=["fp16"], **options)
        return made[name, target]

    return make


@pytest.mark.parametrize(("name", "target"), BUNDLED)
def test_bundled(folders, name, target):
    """Far below the limit, half as large, in 16 bits where other tools look, and said everywhere."""
    result = folders(name, target)
    assert verify_files(result.folder) == []
    graph, quality = result.manifest.graphs[FILE], result.qualities[FILE]
    assert graph.precision == "fp16" and graph.quality == quality.to_dict()
    assert quality.limit == 0.001 and 0 < quality.kl_mean < 1e-3
    assert all(part.kl_mean < 1e-5 for part in quality.stretches if part.end == 64)  # where no key is left out
    assert quality.argmax_agreement > 0.995 and abs(quality.perplexity_ratio - 1) < 1e-3
    assert graph.typing["operators"]["float16"]["MatMul"] > 10
    assert all(0 < extreme["magnitude"] < 1000 for extreme in graph.typing["largest"].values())
    sizes = {name: file.bytes for name, file in result.manifest.files.items()}
    assert sizes[FILE] < 0.54 * sizes["onnx/model.onnx"]
    session = onnxruntime.InferenceSession(result.folder / FILE, providers=["CPUExecutionProvider"])
    types = {value.name: value.type for value in [*session.get_inputs(), *session.get_outputs()]}
    assert types["logits"] == "tensor(float)"
    assert {kind for name, kind in types.items() if name.endswith((".key", ".value"))} == {"tensor(float16)"}
    assert {kind for name, kind in types.items() if "score" in name} <= {"tensor(float)"}
    card = (result.folder / "README.md").read_text()
    assert f"| `{FILE}` | fp16 |" in card and "of 65504" in card
    assert "MatMulNBits" not in card


@pytest.mark.parametrize(("name", "target"), BUNDLED)
def test_sessions(folders, name, target):
    """In pieces, in a padded batch, after a rewind: what float32 gives, nearly."""
    folder = folders(name, target).folder
    exact, half = load(folder), load(folder, precision="fp16")
    ids = exact.tokenizer.encode("Once upon a time, there was a little cat named Tom.")
    for session in (half, half):  # the second time over a cache that was used before
        found = session.logits([ids], chunks=[5, *[1] * (len(ids) - 5)])
        assert found.dtype == np.float32
        expected = exact.logits([ids], chunks=[5, *[1] * (len(ids) - 5)])
        np.testing.assert_allclose(found, expected, atol=expected.std() / 50)
    prompts = ["Once upon a time", "A little girl named Emma was"]
    answers = [session.generate(prompts, max_new_tokens=12, do_sample=False) for session in (exact, half)]
    assert [answer.token_ids for answer in answers[0]] == [answer.token_ids for answer in answers[1]]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("g1-inner-function", "portable"),
        ("g4b-keep-window", "onnxruntime"),
        ("g4b-additive-ratio", "onnxruntime"),
        ("g4b-dynamic-ntk", "portable"),
    ],
)
def test_golden_answers_of_older_generations(name, target, tmp_path):
    export(
        GOLDEN / name, tmp_path / "out", target=target, max_length=64, validate=False, precisions=["fp16"], max_kl=0.01
    )
    golden, session = np.load(GOLDEN / name / "golden.npz"), load(tmp_path / "out", precision="fp16")
    mask = golden["pad_attention_mask"]
    for found, expected in (
        (session.logits(golden["input_ids"]), golden["full_logits"]),
        (session.logits(golden["pad_input_ids"], attention_mask=mask)[mask == 1], golden["pad_logits"][mask == 1]),
    ):
        assert np.abs(found - expected).mean() < expected.std() / 100


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_tasks_without_a_cache(task_export, task, tmp_path):
    folder = shutil.copytree(task_export(task).folder, tmp_path / "copy")
    quality = quantize(folder, ["fp16"]).qualities[FILE]
    assert 0 < quality.kl_mean < 1e-4
    exact, half = load(folder), load(folder, precision="fp16")
    if task == "feature-extraction":
        vectors = half.embed(["Hello", "How do you do?"])
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, exact.embed(["Hello", "How do you do?"]), atol=0.02)
    else:
        np.testing.assert_allclose(half.classify("Hello")[0]["score"], exact.classify("Hello")[0]["score"], atol=0.01)


def scaled(folder, factor):
    """The float32 graph with a layer's up product `factor` times as large, and what comes after as small."""
    model = ir.load(folder / "onnx/model.onnx")
    initializers = model.graph.initializers
    up = next(value for name, value in initializers.items() if "layers.1.mlp.up_proj" in name)
    down = next(value for name, value in initializers.items() if "layers.1.mlp.down_proj" in name)
    width = down.const_value.shape[0]
    columns = up.const_value.numpy().copy()
    columns[:, :width] *= factor
    up.const_value = ir.tensor(columns, name=up.name)
    down.const_value = ir.tensor(down.const_value.numpy() / factor, name=down.name)
    return model


def test_overflow_is_found_before_a_gpu_sees_it(nano_folder, texts, tmp_path):
    """What float32 holds and float16 does not fails the command with the name of the value; the folder stays."""
    folder = shutil.copytree(nano_folder, tmp_path / "copy")
    write_onnx(scaled(nano_folder, 2.0**14), tmp_path / "large.onnx")
    shutil.move(tmp_path / "large.onnx", folder / "onnx/model.onnx")
    from doge_export.package import read_manifest, write_manifest

    manifest = read_manifest(folder)
    write_manifest(folder, manifest)
    ids = [5, 6, 7, 8]
    np.testing.assert_allclose(load(folder).logits(ids), load(nano_folder).logits(ids), atol=1e-3)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(RunFailed, match=r"fp16 cannot hold this model: on text, \w+ \w+ reaches .* 65504; nothing was"):
        quantize(folder, ["fp16"], eval_text=texts["eval_text"])
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_extremes_are_those_of_the_values(nano_folder, tmp_path):
    """By hand: one value of the graph made an output."""
    texts = Texts("by hand", (np.array([5, 6, 7, 8]), np.array([9, 10])))
    extremes = extremes_of(nano_folder / "onnx/model.onnx", texts)
    largest = by_operator(extremes)["Mul"]
    model = ir.load(nano_folder / "onnx/model.onnx")
    value = next(value for node in model.graph for value in node.outputs if value.name == largest["value"])
    value.dtype = ir.DataType.FLOAT
    model.graph.outputs.append(value)
    write_onnx(model, tmp_path / "one.onnx")
    from doge_export.quantization.whole import WholeTexts

    graph = WholeTexts(tmp_path / "one.onnx")
    found = max(np.abs(graph.run(ids, [value.name])[0]).max() for ids in texts.rows)
    assert largest["magnitude"] == pytest.approx(float(found), rel=1e-5)
    assert not any(extreme.overflows for extreme in extremes)


def test_a_limit_that_is_exceeded_writes_nothing(nano_folder, texts, tmp_path):
    folder = shutil.copytree(nano_folder, tmp_path / "copy")
    with pytest.raises(RunFailed, match="fp16 loses too much"):
        quantize(folder, ["fp16"], max_kl=1e-12, eval_text=texts["eval_text"])
    assert not (folder / FILE).exists()


@pytest.mark.parametrize(("name", "target"), [("doge-nano", "portable"), ("doge-nano", "onnxruntime")])
def test_weights_of_4_bits_with_activations_of_16(folders, name, target, texts, tmp_path):
    """q4f16: what 4 bits lose, and nothing in float32 that fp16 has in 16 bits."""
    folder = tmp_path / "out"
    shutil.copytree(folders(name, target).folder, folder)
    result = quantize(folder, ["q4f16"], **texts)
    file = "onnx/model_q4f16.onnx"
    entry, half = result.manifest.graphs[file], result.manifest.graphs[FILE]
    assert entry.quantization["bits"] == 4 and entry.quantization["cache"] == "fp16"
    assert entry.quantization["accuracy_level"] == 0  # of products in 16 bits
    assert entry.typing["largest"].keys() == half.typing["largest"].keys()
    assert 0 < entry.quality["kl_mean"] < 0.15 and entry.quality["perplexity_ratio"] < 1.05
    assert result.manifest.files[file].bytes < 0.3 * result.manifest.files[FILE].bytes
    graph = ir.load(folder / file).graph
    few = [node for node in graph if node.op_type == "MatMulNBits"]
    halves = [node for node in few if node.inputs[2].const_value.dtype == ir.DataType.FLOAT16]
    assert {node.attributes["accuracy_level"].as_int() for node in halves} == {0}
    products = half.typing["operators"]["float16"]["MatMul"]
    assert len(halves) > products / 2 and len(few) + sum(node.op_type == "MatMul" for node in graph) >= products
    assert entry.typing["operators"]["float16"]["MatMulNBits"] == len(halves)
    caches = [value.dtype for value in graph.inputs if value.name.endswith((".key", ".value"))]
    assert caches and set(caches) == {ir.DataType.FLOAT16}
    session = load(folder, precision="q4f16")
    ids = session.tokenizer.encode("Once upon a time, there was a little cat named Tom.")
    whole, pieces = session.logits([ids]), session.logits([ids], chunks=[5, *[1] * (len(ids) - 5)])
    np.testing.assert_allclose(pieces, whole, atol=whole.std() / 20)
    card = (folder / "README.md").read_text()
    assert f"| `{file}` | q4f16 |" in card and "weights of 4 bits, 128 to a scale, GPTQ" in card


def test_only_fp16_is_for_the_canonical_target(tmp_path):
    with pytest.raises(DogeExportError, match="--precision fp16"):
        export(bundled("doge-nano"), tmp_path / "out", target="canonical", precisions=["int8", "fp16"])
    assert not (tmp_path / "out").exists()


def test_load_tells_how_to_get_it(nano_folder):
    with pytest.raises(DogeExportError, match=r"has no fp16 graph .*--precision fp16` adds it"):
        load(nano_folder, precision="fp16")
