"""From a checkpoint to a folder: what is planned, what is written, and what is not."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import socket
from pathlib import Path

import onnx_ir as ir
import pytest
from random_doge import CONFIG, MOE, random_model

import doge_export
from doge_export import DogeExportError, RunFailed
from doge_export.package import read_manifest, verify
from doge_export.package.manifest import MODEL
from doge_export.pipeline.folder import OutputFolder
from doge_export.pipeline.onnx import export
from doge_export.pipeline.plan import plan
from doge_export.targets import TARGETS

WINDOW, TRAINED = CONFIG["keep_window_size"], CONFIG["max_position_embeddings"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A local checkpoint needs nobody."""

    def refuse(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="module")
def tiny_moe(checkpoint):
    return checkpoint(num_hidden_layers=1, **MOE)


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """An export with everything asked for, and what it gave back."""
    folder = tmp_path_factory.mktemp("pipeline")
    result = export(tiny, folder / "out", max_length=TRAINED, token="hf_secret", report=folder / "report.html")
    return folder, result


@pytest.mark.parametrize("values", [{"top_k": 50.0}, {"eos_token_id": -2}, {"bad_words_ids": [[10**6]]}], ids=str)
def test_a_wrong_generation_config_is_told_before_any_work(tiny, tmp_path, values):
    source = shutil.copytree(tiny, tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DogeExportError) as caught:
        plan(source)
    assert str(caught.value).startswith(f"{source / 'generation_config.json'}: {next(iter(values))} ")


def test_an_unsupported_setting_is_told_and_named_templates_come_along(tiny, tmp_path, capsys):
    source = shutil.copytree(tiny, tmp_path / "source")
    config = {"num_beams": 3, "no_repeat_ngram_size": 2, "suppress_tokens": [1, 2, 3]}
    (source / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("R", encoding="utf-8")
    plan(source)
    assert "note: " in (said := capsys.readouterr().err) and "num_beams is 3" in said
    export(source, tmp_path / "out", validate=False)
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text(encoding="utf-8") == "R"
    assert "additional_chat_templates/rag.jinja" in read_manifest(tmp_path / "out").files
    with pytest.warns(UserWarning, match="num_beams is 3"):
        session = doge_export.load(tmp_path / "out")
    answer = session.generate([5, 6], max_new_tokens=30, eos_token_id=[])
    pairs = list(itertools.pairwise([5, 6, *answer.token_ids]))
    assert len(set(pairs)) == len(pairs) and not {1, 2, 3} & set(answer.token_ids)


class Spoil(ir.passes.InPlacePass):
    """A lowering with a mistake in it."""

    def call(self, model):
        value = model.graph.initializers["model.layers.0.input_residual"]
        value.const_value = ir.tensor(value.const_value.numpy() * 1.05, name=value.name)
        return ir.passes.PassResult(model, modified=True)


@pytest.fixture
def spoiled(monkeypatch):
    target = TARGETS["onnxruntime"]
    passes = target.passes
    wrong = dataclasses.replace(target, passes=lambda mixes_tokens: (*passes(mixes_tokens), Spoil()))
    monkeypatch.setitem(TARGETS, "onnxruntime", wrong)


def dry_run(model, output, **options):
    """As `--dry-run` does."""
    OutputFolder.checked(output, reads=model)
    return plan(model, **options)


def parameters(**changes):
    return sum(parameter.numel() for parameter in random_model(num_hidden_layers=1, **changes).parameters())


def test_plan_reads_and_writes_nothing(tiny, tmp_path):
    planned = plan(tiny, target="portable", max_length=WINDOW + 1)
    assert list(tmp_path.iterdir()) == []
    facts = json.loads(json.dumps(planned.to_dict()))
    assert (
        facts.items()
        >= {
            "model": str(tiny),
            "revision": None,
            "target": "portable",
            "max_length": WINDOW + 1,
            "cdmoe_routing": None,
            "key_selection": True,
            "rope_scaling": False,
            "parameters": parameters(),
            "bytes": 4 * parameters(),
        }.items()
    )
    assert facts["architecture"]["hidden_size"] == CONFIG["hidden_size"]


@pytest.mark.parametrize(
    ("max_length", "selects", "scales", "chunkable"),
    [
        (1, False, False, 1),
        (WINDOW, False, False, WINDOW),
        (WINDOW + 1, True, False, WINDOW + 1),
        (None, True, False, TRAINED),
        (TRAINED + 1, True, True, TRAINED),
    ],
)
def test_max_length_decides_the_mechanisms(tiny, tmp_path, max_length, selects, scales, chunkable):
    planned = plan(tiny, max_length=max_length)
    assert planned.max_length == (TRAINED if max_length is None else max_length)
    assert (planned.key_selection, planned.rope_scaling) == (selects, scales)
    assert planned.chunkable_length == chunkable


@pytest.mark.parametrize(("routing", "chunkable"), [("reference", 0), ("per-token", TRAINED)])
def test_routing_is_recorded_for_a_mixture_of_experts(tiny_moe, tmp_path, routing, chunkable):
    planned = plan(tiny_moe, cdmoe_routing=routing)
    assert planned.cdmoe_routing == routing
    assert planned.chunkable_length == chunkable
    assert planned.parameters == parameters(**MOE)


@pytest.mark.parametrize("run", [dry_run, export])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max length 0 is not a number of tokens"),
        ({"max_length": -5}, "max length -5"),
        ({"max_length": 2**24 + 1}, "max length 16777217"),
        ({"max_length": 12.5}, "max length 12.5"),
        ({"max_length": True}, "max length True"),
        ({"target": "abacus"}, "unknown target 'abacus'; choose one of onnxruntime, portable"),
        ({"cdmoe_routing": "random"}, "unknown CDMoE routing 'random'; choose reference or per-token"),
        ({"trust_remote_code": True}, "never run"),
        ({"precisions": ["int3"]}, "cannot quantise to int3; choose int8 or int4 or fp16"),
        ({"precisions": ["int8"], "calibration": "/nowhere"}, "text /nowhere is not a file"),
        ({"precisions": ["int8"], "target": "canonical"}, "quantised by the compiler"),
        ({"max_kl": 1.0}, "but no precision; add --precision int8"),
    ],
)
def test_impossible_requests(tiny, tmp_path, run, arguments, message):
    with pytest.raises(DogeExportError, match=message) as raised:
        run(tiny, tmp_path / "out", **arguments)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", [dry_run, export])
def test_the_output_is_looked_at_first(tmp_path, run):
    """Before the checkpoint, so that no download is in vain: here there is none to be read."""
    (tmp_path / "file").write_text("mine")
    for output, message in [(tmp_path, "is not empty.*--force"), (tmp_path / "file", "is a file")]:
        with pytest.raises(DogeExportError, match=message):
            run(tmp_path / "no checkpoint", output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("run", [dry_run, export])
def test_a_missing_checkpoint(tmp_path, run):
    with pytest.raises(DogeExportError, match="no checkpoint"):
        run(tmp_path / "no checkpoint", tmp_path / "out", offline=True)
    assert list(tmp_path.iterdir()) == []


def test_a_name_no_file_can_have(tmp_path):
    with pytest.raises(DogeExportError, match="there is no folder") as raised:
        export("x" * 5000, tmp_path / "out", offline=True)
    assert "\n" not in str(raised.value)


def test_an_export_gives_what_it_wrote(written):
    folder, result = written
    assert result.folder == folder / "out"
    assert result.manifest == read_manifest(folder / "out") == verify(folder / "out")
    assert result.verdict.passed
    assert sorted(path.name for path in folder.iterdir()) == ["out", "report.html"]
    assert "PASSED" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_files(written, tiny):
    folder, result = written
    files = {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*") if path.is_file()}
    assert files == {"README.md", "config.json", "generation_config.json", "doge_export.json", "onnx/model.onnx"}
    assert set(result.manifest.files) == files - {"doge_export.json"}
    for name in ("config.json", "generation_config.json"):
        assert (folder / "out" / name).read_bytes() == (tiny / name).read_bytes()


def test_the_manifest(written, tiny):
    _, result = written
    manifest = result.manifest
    planned = plan(tiny)
    assert manifest.format == 1
    assert manifest.doge_export == doge_export.__version__
    assert manifest.source.model == str(tiny.resolve())
    assert set(manifest.source.files) == {"config.json", "model.safetensors"}
    assert manifest.source.files["config.json"].bytes == (tiny / "config.json").stat().st_size
    assert manifest.architecture == json.loads(json.dumps(planned.checkpoint.architecture.to_dict()))
    assert (manifest.target, manifest.max_length, manifest.cdmoe_routing) == ("onnxruntime", TRAINED, None)
    assert manifest.chunkable_length == planned.chunkable_length
    graph = manifest.graphs[MODEL]
    assert (graph.precision, graph.ir_version, graph.opset[""]) == ("fp32", 10, 23)
    assert graph.interface == "in-place"
    assert graph.nodes == sum(graph.operators.values()) > 10
    assert graph.operators["com.microsoft.GroupQueryAttention"] == 1
    assert set(manifest.versions) >= {"python", "torch", "transformers", "onnx", "onnxruntime"}
    assert manifest.validation == result.verdict.to_dict()
    assert manifest.seconds > 0


def test_peak_memory_is_recorded(written):
    """In bytes: of a process with torch in it."""
    peak = written[1].manifest.peak_memory_bytes
    assert 50e6 < peak < 100e9
    assert isinstance(peak, int)


def test_the_token_is_nowhere(written):
    folder, _ = written
    for file in folder.rglob("*"):
        assert file.is_dir() or b"hf_secret" not in file.read_bytes(), file


def test_without_validation(tiny, tmp_path):
    result = export(str(tiny), str(tmp_path / "deep" / "out"), max_length=8, validate=False)
    assert result.verdict is None
    assert result.folder == tmp_path / "deep" / "out"
    assert read_manifest(result.folder).validation == {"skipped": "--no-validate"}


def written_before(folder: Path) -> None:
    """Make what passes for an older export with one file, `old`."""
    folder.mkdir()
    (folder / "old").write_text("old")
    (folder / "doge_export.json").write_text('{"doge_export": "0", "files": {"old": {}}}')


def test_a_report_that_cannot_be_written_keeps_the_export(tiny, tmp_path):
    with pytest.raises(
        RunFailed, match=r"^the report cannot be written to /dev/full: .*; the export passed, and .*out"
    ):
        export(tiny, tmp_path / "out", max_length=8, report="/dev/full")
    assert verify(tmp_path / "out").passed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["model/page.html", "model/config.json", "text.txt"])
def test_a_report_over_something_that_is_read_is_refused(tiny, tmp_path, name):
    (tmp_path / "model").symlink_to(tiny)
    (tmp_path / "text.txt").write_text("a text")
    options = {"calibration": tmp_path / "text.txt", "precisions": ["int8"]}
    with pytest.raises(DogeExportError, match=r"would lie in|is --calibration of the same command"):
        export(tmp_path / "model", tmp_path / "out", report=tmp_path / name, **options)
    assert (tmp_path / "text.txt").read_text() == "a text"


def test_force_replaces_everything(tiny, tmp_path):
    written_before(tmp_path / "out")
    export(tiny, tmp_path / "out", max_length=8, validate=False, force=True)
    assert not (tmp_path / "out" / "old").exists()
    verify(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_wrong_export_is_not_written(tiny, tmp_path, spoiled):
    report = tmp_path / "report.html"
    with pytest.raises(RunFailed, match=r"^FAILED .*nothing was written .*--no-validate") as raised:
        export(tiny, tmp_path / "out", max_length=24, report=report)
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "FAILED" in report.read_text(encoding="utf-8")


def test_a_wrong_export_replaces_nothing(tiny, tmp_path, spoiled):
    written_before(tmp_path / "out")
    with pytest.raises(RunFailed):
        export(tiny, tmp_path / "out", max_length=24, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_a_wrong_export_can_be_kept_to_look_at(tiny, tmp_path, spoiled):
    """And is found wrong later."""
    folder = export(tiny, tmp_path / "out", max_length=24, validate=False).folder
    assert not doge_export.validate(folder).passed


def test_paths_below_home(tiny, tmp_path, monkeypatch):
    """~ is the user's folder in every place, and protects the checkpoint that is being read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny, tmp_path / "model")
    result = export("~/model", Path("~/out"), max_length=8, validate=False)
    assert result.folder == tmp_path / "out"
    assert read_manifest(result.folder).source.model == str((tmp_path / "model").resolve())
    with pytest.raises(DogeExportError, match="which is being read"):
        export("~/model", "~/model", force=True)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_report_that_cannot_be_written_is_refused_before_the_export(checkpoint, tmp_path):
    for report, reason in (
        (tmp_path / "no" / "r.html", "no folder"),
        (tmp_path, "is a folder"),
        (tmp_path / "out" / "r.html", "no folder"),
    ):
        with pytest.raises(DogeExportError, match=reason):
            export(checkpoint(), tmp_path / "out", report=report)
        assert not (tmp_path / "out").exists()


def test_a_report_inside_the_folder_that_is_replaced_is_refused(checkpoint, tmp_path):
    out = tmp_path / "out"
    written_before(out)
    with pytest.raises(DogeExportError, match="would lie in"):
        export(checkpoint(), out, report=out / "r.html", force=True)
    assert sorted(file.name for file in out.iterdir()) == ["doge_export.json", "old"]


GOLDEN = Path(__file__).parent / "golden"


def test_the_canonical_graph_has_the_two_operators_and_their_bodies(tmp_path):
    export(GOLDEN / "g4b-moe-m1", tmp_path / "out", target="canonical", validate=False)
    model = ir.load(tmp_path / "out" / MODEL)
    assert {node.op_type for node in model.graph if node.domain == "doge"} == {"DynamicMaskAttention", "CDMoE"}
    assert {name for _, name, _ in model.functions} == {"DynamicMaskAttention", "CDMoE"}


def test_a_ratio_mask_has_no_canonical_graph(tmp_path):
    with pytest.raises(DogeExportError, match=r"no operator for dynamic_mask_ratio \(G4b\).*onnxruntime or portable"):
        export(GOLDEN / "g4b-additive-ratio", tmp_path / "out", target="canonical")
    assert not (tmp_path / "out").exists()


def test_notes_of_what_the_files_leave_open_are_printed(tmp_path, capsys):
    export(GOLDEN / "g4b-moe-m7", tmp_path / "out", validate=False)
    assert "M7 is assumed (--cdmoe)" in capsys.readouterr().err
    manifest = export(GOLDEN / "g4b-moe-m7", tmp_path / "other", cdmoe="M6", validate=False).manifest
    assert manifest.assumptions == {"cdmoe": "M6"}
    assert manifest.architecture["moe"]["variant"] == "M6"
    assert "is assumed" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"generation": "G5"}, {"cdmoe": "M1"}, {"task": "text-classification"}])
def test_assumptions_that_the_tensors_rule_out(options, tmp_path):
    with pytest.raises(DogeExportError, match=f"--{next(iter(options))}"):
        plan(GOLDEN / "g4b-moe-m7", **options)


def test_an_unknown_option_is_a_mistake_of_the_program(tmp_path):
    with pytest.raises(TypeError, match="unknown options: quantise"):
        export(GOLDEN / "g5-topk", tmp_path / "out", quantise=True)


def test_old_names_of_options_are_refused_with_the_new_one(tiny):
    with pytest.raises(TypeError, match="unknown options: quantize; quantize is called precisions"):
        plan(tiny, quantize=["int8"])
