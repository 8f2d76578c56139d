import dataclasses
import itertools
import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from doge_export import DogeExportError, RunFailed, export, load
from doge_export.assets import bundled
from doge_export.cli import main
from doge_export.package import read_manifest, verify_files
from doge_export.pipeline.quantize import quantize
from doge_export.quantization import texts as texts_module
from doge_export.quantization.quality import measure
from doge_export.quantization.texts import Texts, texts_for
from doge_export.quantization.whole import WholeTexts
from doge_export.runtime.tokenizer import Tokenizer

TARGETS = ("onnxruntime", "portable")
NAMES = ("doge-nano", "doge-nano-moe")
FILES = {"int8": "onnx/model_quantized.onnx", "int4": "onnx/model_q4.onnx"}
QUICK = {("doge-nano", "onnxruntime"), ("doge-nano-moe", "portable")}
"""Each model and each target once."""
BUNDLED = [
    each if each in QUICK else pytest.param(*each, marks=pytest.mark.slow) for each in itertools.product(NAMES, TARGETS)
]


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("name", "target"), BUNDLED)
class TestBundled:
    def test_quality_is_within_the_limits_and_recorded(self, quantised, name, target):
        result = quantised(name, target)
        assert {*result.qualities} == {*FILES.values()}
        assert verify_files(result.folder) == []
        for precision, (kl, perplexity) in {"int8": (0.03, 0.005), "int4": (0.15, 0.06)}.items():
            graph = result.manifest.graphs[FILES[precision]]
            assert graph.precision == precision
            assert graph.quality == result.qualities[FILES[precision]].to_dict()
            assert 0 < graph.quality["kl_mean"] <= kl
            assert graph.quality["perplexity_ratio"] < 1 + perplexity
            assert graph.quality["positions"] > 500
            assert graph.quality["kl_mean"] == max(part["kl_mean"] for part in graph.quality["stretches"])
            assert [part["length"] for part in graph.quality["stretches"]] == [192] * 2 + [256] * 3
            assert graph.quality["argmax_agreement"] > 0.9
            card = (result.folder / "README.md").read_text()
            assert f"| `{FILES[precision]}` | {precision} |" in card
            assert ("have MatMulNBits of com.microsoft" in card) == (target == "portable")

    def test_nodes_come_after_what_they_read(self, quantised, name, target):
        for file in FILES.values():
            graph = ir.load(quantised(name, target).folder / file).graph
            known = {*graph.inputs, *graph.initializers.values(), None}
            for node in graph:
                assert {*node.inputs} <= known
                known |= {*node.outputs}

    def test_four_bits_are_better_than_rounding(self, quantised, texts, name, target, tmp_path):
        """Where no key is left out: less divergence than the file that is rounded to the nearest."""
        from doge_export.package.onnx_file import write_onnx
        from doge_export.quantization.quantize_weights import QuantizeWeights
        from doge_export.quantization.rounding import nearest
        from doge_export.quantization.weights import quantizable_weights

        result = quantised(name, target)
        model = ir.load(result.folder / "onnx/model.onnx")
        large = [weight for weight in quantizable_weights(model.graph) if weight.matrix().size >= 2**12]
        QuantizeWeights(large, lambda weight: [(slice(0, weight.shape[0]), nearest(weight.matrix(), 4, 128))])(model)
        write_onnx(model, tmp_path / "rounded.onnx")
        evaluation = texts_for("evaluation", load(result.folder), texts["eval_text"])
        reference = WholeTexts(result.folder / "onnx/model.onnx")
        rounded = measure(reference, WholeTexts(tmp_path / "rounded.onnx"), evaluation, 1.0)
        found, expected = result.qualities[FILES["int4"]].stretches[0], rounded.stretches[0]
        assert (found.length, found.end) == (expected.length, expected.end) == (192, 64)
        # Further on, which keys happen to be exchanged decides.
        assert found.kl_mean < 0.7 * expected.kl_mean

    def test_size(self, quantised, name, target):
        """Everything large is stored in few bits, and once."""
        result = quantised(name, target)
        sizes = {name: file.bytes for name, file in result.manifest.files.items()}
        model = ir.load(result.folder / "onnx/model.onnx")
        weights = sum(value.const_value.size for value in model.graph.initializers.values())
        graph = sizes["onnx/model.onnx"] - 4 * weights
        for precision, bits in (("int8", 8.25), ("int4", 5.0)):
            spare = 1.3 * graph + 40_000
            assert sizes[FILES[precision]] < weights * bits / 8 + spare

    def test_sessions_of_every_precision_agree_with_their_quality(self, quantised, name, target):
        """The decoder reads a text in pieces, through its cache."""
        folder = quantised(name, target).folder
        ids = load(folder).tokenizer.encode("Once upon a time, there was a little cat named Tom.")
        logits = {precision: load(folder, precision=precision).logits(ids) for precision in ("fp32", *FILES)}
        off = {precision: np.abs(logits[precision] - logits["fp32"]).mean() for precision in FILES}
        assert 0 < off["int8"] < off["int4"] < logits["fp32"].std() / 4
        np.testing.assert_array_equal(load(folder).logits(ids), logits["fp32"])
        answer = load(folder, precision="int4").generate("Once upon a time", max_new_tokens=8, do_sample=False)
        assert len(answer.token_ids) == 8


def test_quantising_a_folder_is_quantising_during_export(quantised, texts, tmp_path):
    """The same graphs byte for byte; only the times differ."""
    added = quantised("doge-nano", "onnxruntime")
    whole = export(bundled("doge-nano"), tmp_path / "out", validate=False, precisions=["int4", "int8"], **texts)
    assert verify_files(whole.folder) == []
    assert whole.qualities == added.qualities
    for file in FILES.values():
        assert added.manifest.files[file] == whole.manifest.files[file]
        found, expected = added.manifest.graphs[file], whole.manifest.graphs[file]
        assert dataclasses.replace(found, seconds=0) == dataclasses.replace(expected, seconds=0)
    assert {*read_manifest(whole.folder).graphs} == {"onnx/model.onnx", *FILES.values()}


def test_exceeding_the_limit_leaves_the_folder_as_it_was(copy, texts):
    before = contents(copy)
    with pytest.raises(RunFailed, match=r"int8 loses too much: KL .* nothing was written"):
        quantize(copy, ["int8"], max_kl=1e-9, **texts)
    assert contents(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_exceeding_the_limit_during_export_writes_nothing(texts, tmp_path):
    with pytest.raises(RunFailed, match="int8 loses too much"):
        export(bundled("doge-nano"), tmp_path / "out", validate=False, precisions=["int8"], max_kl=0, **texts)
    assert not (tmp_path / "out").exists()


def test_a_graph_is_made_anew_only_with_force(copy, texts):
    quantize(copy, ["int8"], **texts)
    with pytest.raises(DogeExportError, match=r"has int8 already; .*--force"):
        quantize(copy, ["int8"], **texts)
    before = (copy / FILES["int8"]).read_bytes()
    quantize(copy, ["int8"], force=True, **texts)
    assert (copy / FILES["int8"]).read_bytes() == before


@pytest.mark.parametrize(
    ("precisions", "options", "message"),
    [
        (["fp16"], {"float_cache": True}, "choice of int8 and int4 only"),
        (["fp16"], {"expand_weights": True}, "expanding weights is a choice of int8 and int4 only"),
        (["int5"], {}, "cannot quantise to int5; choose int8 or int4"),
        ([], {}, "cannot quantise to nothing"),
        (["int8"], {"max_kl": -1.0}, "max KL is -1.0"),
        (["int8"], {"max_kl": float("nan")}, "max KL is nan"),
        (["int8"], {"eval_text": "nowhere.txt"}, "nowhere.txt is not a file"),
    ],
)
def test_refused_before_anything_is_read(precisions, options, message, tmp_path):
    with pytest.raises(DogeExportError, match=message):
        quantize(tmp_path / "no such folder", precisions, **options)


def test_expanded_weights(quantised, texts, tmp_path):
    """The rounding of weights is all that is lost, and standard operators are all that a runtime needs."""
    few = quantised("doge-nano-moe", "portable")
    folder = tmp_path / "expanded"
    shutil.copytree(few.folder, folder)
    result = quantize(folder, ["int8"], expand_weights=True, force=True, **texts)
    graph = result.manifest.graphs[FILES["int8"]]
    assert graph.quantization["expanded"] is True and "accuracy_level" not in graph.quantization
    assert set(graph.opset) == {""} and graph.onnxruntime == "1.18"
    assert graph.quality["kl_mean"] < few.manifest.graphs[FILES["int8"]].quality["kl_mean"]
    assert (folder / FILES["int8"]).stat().st_size < 1.1 * (few.folder / FILES["int8"]).stat().st_size
    card = (folder / "README.md").read_text()
    assert "MatMulNBits of com.microsoft" in card  # int4 has them still
    assert "expands them to float32 when it creates a session" in card


def test_weights_are_expanded_for_one_target_alone(copy, texts):
    with pytest.raises(DogeExportError, match="target portable alone, and this is onnxruntime"):
        quantize(copy, ["int8"], expand_weights=True, force=True, **texts)


def test_damaged_and_foreign_folders_are_refused(copy, texts, tmp_path):
    with pytest.raises(DogeExportError, match="does not exist"):
        quantize(tmp_path / "nowhere", ["int8"])
    (copy / "extra").write_text("x")
    with pytest.raises(DogeExportError, match="extra: unexpected"):
        quantize(copy, ["int8"])
    (copy / "extra").unlink()
    (copy / ".git").mkdir()
    with pytest.raises(DogeExportError, match="is a git repository"):
        quantize(copy, ["int8"])


def test_the_canonical_target_is_refused(tmp_path):
    with pytest.raises(DogeExportError, match="target canonical is quantised by the compiler"):
        export(bundled("doge-nano"), tmp_path / "out", target="canonical", precisions=["int8"])


def test_a_short_or_unreadable_text_is_refused(copy, tmp_path):
    (tmp_path / "short").write_text("Hello")
    with pytest.raises(DogeExportError, match="expected at least 32"):
        quantize(copy, ["int8"], eval_text=tmp_path / "short")
    (tmp_path / "bytes").write_bytes(b"\xff" * 100)
    with pytest.raises(DogeExportError, match="is not UTF-8"):
        quantize(copy, ["int8"], eval_text=tmp_path / "bytes")


def test_a_short_text_is_refused_before_the_work(tmp_path):
    (tmp_path / "short").write_text("Hello")
    for option in ("--calibration", "--eval-text"):
        call = ["onnx", "doge-nano", str(tmp_path / "out"), "--precision", "int8", option, str(tmp_path / "short")]
        done = CliRunner().invoke(main, [*call, "--dry-run"])
        assert done.exit_code == 2 and "short has 1 tokens, expected at least 32" in done.stderr


def test_of_a_long_text_the_beginning_is_taken(tmp_path, monkeypatch):
    tokenizer = Tokenizer.from_folder(bundled("doge-nano"))
    file = tmp_path / "long"
    file.write_text("A dog ran — home. " * 50)
    whole = tokenizer.encode(file.read_text(), add_special_tokens=False)
    monkeypatch.setattr(texts_module, "MOST_OF_FILE", {"tokens": 100, "bytes": 10**6})
    assert texts_module.ids_of_file(tokenizer, file) == whole[:100]
    monkeypatch.setattr(texts_module, "MOST_OF_FILE", {"tokens": 10**6, "bytes": 18 * 20 + 12})  # within the dash
    assert texts_module.ids_of_file(tokenizer, file)[:90] == whole[:90]


def test_texts_of_the_model_are_its_own_and_not_those_of_the_calibration(nano_folder, monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS", {"calibration": 200, "evaluation": 200})
    session = load(nano_folder)
    found = {purpose: texts_for(purpose, session) for purpose in ("calibration", "evaluation")}
    for texts in found.values():
        assert texts.origin == "generated by the float32 model"
        assert 200 <= texts.tokens < 200 + texts_module.LENGTH
    rows = {purpose: {tuple(row) for row in texts.rows} for purpose, texts in found.items()}
    assert not rows["calibration"] & rows["evaluation"]
    again = texts_for("evaluation", session)
    assert [row.tolist() for row in again.rows] == [row.tolist() for row in found["evaluation"].rows]


@pytest.mark.parametrize("moe", [False, True])
def test_a_folder_without_tokenizer_and_with_odd_widths(exported, moe, tmp_path, monkeypatch):
    """Random token ids; rows of 64 and 96 have smaller blocks."""
    import shutil

    monkeypatch.setattr(texts_module, "TOKENS", {"calibration": 400, "evaluation": 400})
    folder = shutil.copytree(exported(moe=moe), tmp_path / "copy")
    result = quantize(folder, ["int8", "int4"], max_kl=1.0)
    for file in FILES.values():
        quality = result.qualities[file]
        assert quality.text == "random token ids"
        assert quality.kl_mean < (0.05 if file == FILES["int8"] else 1.0)


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
def test_tasks_without_a_cache(task_export, task, tmp_path):
    import shutil

    folder = shutil.copytree(task_export(task).folder, tmp_path / "copy")
    result = quantize(folder, ["int8", "int4"], max_kl=0.2)
    quality = result.qualities[FILES["int8"]]
    assert quality.text == "prompts"
    assert quality.perplexity is None
    assert (quality.argmax_agreement is None) == (task == "feature-extraction")
    assert 0 < quality.kl_mean < 0.02
    session = load(folder, precision="int4")
    if task == "feature-extraction":
        assert session.embed(["Hello"]).shape == (1, 64)
        assert "1 - cosine" in (folder / "README.md").read_text()
    else:
        assert session.classify("Hello")


def test_load_knows_what_there_is(nano_folder):
    with pytest.raises(DogeExportError, match=r"has no int4 graph \(it has fp32\); .*doge-export quantize"):
        load(nano_folder, precision="int4")


def test_load_takes_the_first_where_there_is_no_float32(quantised, tmp_path):
    import shutil

    folder = shutil.copytree(quantised("doge-nano", "onnxruntime").folder, tmp_path / "copy")
    (folder / "onnx/model.onnx").unlink()
    manifest = json.loads((folder / "doge_export.json").read_text())
    del manifest["graphs"]["onnx/model.onnx"]
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    ids = [1, 5, 9]
    expected = load(quantised("doge-nano", "onnxruntime").folder, precision="int8").logits(ids)
    np.testing.assert_array_equal(load(folder).logits(ids), expected)


class Scripted:
    """Stands for a graph: gives the outputs it was told to."""

    output = "logits"

    def __init__(self, *outputs):
        self.outputs = list(outputs)

    def run(self, ids):
        return [self.outputs.pop(0)]


def test_quality_by_hand():
    """Two positions of two tokens: p = (3/4, 1/4), then even; the subject says even, then even."""
    reference, subject = np.log([[[3, 1], [1, 1]]]) + 5, np.zeros((1, 2, 2))
    texts = Texts("by hand", (np.array([0, 1]),))
    quality = measure(Scripted(reference), Scripted(subject), texts, limit=0.1)
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert quality.kl_mean == pytest.approx(kl / 2)
    assert quality.kl_standard_error == pytest.approx(kl / 2)
    assert quality.perplexity == pytest.approx(2)
    assert quality.perplexity_ratio == pytest.approx(0.5)  # token 1 had probability 1/4
    assert quality.passed


def test_a_graph_that_gives_no_numbers_passes_no_limit():
    texts = Texts("by hand", (np.array([0, 1]),))
    broken = np.full((1, 2, 2), np.nan)
    quality = measure(Scripted(np.zeros((1, 2, 2))), Scripted(broken), texts, limit=100)
    assert not quality.passed
    assert json.loads(json.dumps(quality.to_dict(), allow_nan=False))["kl_mean"] is None
