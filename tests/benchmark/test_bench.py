import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import doge_export
from doge_export import export
from doge_export.assets import bundled
from doge_export.benchmark.bench import bench, contexts_to_plot
from doge_export.benchmark.machine import machine
from doge_export.benchmark.probe import probe
from doge_export.benchmark.reference import load_reference, torch_threads
from doge_export.benchmark.timed_model import TimedSession
from doge_export.checkpoint import open_checkpoint
from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.package.manifest import read_manifest, write_manifest

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = {"rounds": 2, "new_tokens": 4, "prefill_length": 16, "threads": 1}
QUICK_OPTIONS = ["--rounds", "1", "--new-tokens", "2", "--prefill-length", "8", "--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)], catch_exceptions=False, prog_name="doge-export")


def test_percentiles_are_ordered_and_positive(nano_folder):
    result = bench(nano_folder, context=[5, 40, 5], **QUICK)
    rates, seconds = result.rates["doge-export"], result.seconds["doge-export"]
    assert list(rates) == ["decode", "prefill", "decode@5", "decode@40"]
    assert list(seconds) == ["first_token", "first_token@5", "first_token@40"]
    for low, middle, high in [*rates.values(), *seconds.values()]:
        assert 0 < low <= middle <= high
    assert result.baseline is None and result.ratio("doge-export", "decode") is None
    assert result.to_dict()["ratios"] == {}


def test_comparison_runs_transformers_in_the_same_rounds(nano_folder):
    result = bench(nano_folder, compare=bundled("doge-nano"), context=[20], **QUICK)
    assert result.rates.keys() == result.seconds.keys() == {"doge-export", "transformers"}
    assert result.baseline == "transformers" and result.process.keys() == {"doge-export"}
    ratios = result.to_dict()["ratios"]["doge-export"]
    for measure in ("decode", "prefill", "decode@20"):
        ours, theirs = (result.rates[name][measure][1] for name in ("doge-export", "transformers"))
        assert ratios[measure] == ours / theirs
    for measure in ("first_token", "first_token@20"):
        ours, theirs = (result.seconds[name][measure][1] for name in ("doge-export", "transformers"))
        assert ratios[measure] == theirs / ours  # more is faster here too


def test_folders_side_by_side_are_compared_with_the_first(nano_folder, nano_moe_folder):
    result = bench([nano_folder, nano_moe_folder, nano_folder], backend=["graph"], **QUICK)
    first, second = str(nano_folder), str(nano_moe_folder)
    assert list(result.rates) == list(result.process) == [first, second]
    assert result.baseline == first
    assert result.ratio(first, "decode") is None
    assert result.ratio(second, "decode") == result.rates[second]["decode"][1] / result.rates[first]["decode"][1]
    for name, folder in ((first, nano_folder), (second, nano_moe_folder)):
        assert result.subjects[name] == {
            "folder": name,
            "precision": "fp32",
            "computed_by": "onnxruntime",
            "file_bytes": (folder / "onnx/model.onnx").stat().st_size,
        }


def test_smaller_windows_are_timed_beside_the_trained_one(nano_folder, native_library):
    result = bench(nano_folder, backend=["native"], window=[16, 16], **QUICK)
    assert list(result.rates) == list(result.process) == ["window 64", "window 16"]
    assert result.baseline == "window 64" and result.ratio("window 16", "decode") > 0
    done = run(nano_folder, "--backend", "native", "--window", 65, *QUICK_OPTIONS)
    assert done.exit_code == 2 and "expected 1 to 64" in done.stderr


@pytest.fixture
def two_precisions(nano_folder, tmp_path):
    """A folder with a second graph: the same one under another name, since what is asked is which file runs."""
    folder = tmp_path / "two"
    shutil.copytree(nano_folder, folder)
    shutil.copy(folder / "onnx/model.onnx", folder / "onnx/model_quantized.onnx")
    manifest = read_manifest(folder)
    other = dataclasses.replace(manifest.graphs["onnx/model.onnx"], precision="int8")
    write_manifest(folder, manifest.with_graph("onnx/model_quantized.onnx", other))
    return folder


def test_precisions_side_by_side(two_precisions, nano_folder):
    result = bench(two_precisions, precision=["int8", "fp32"], **QUICK)
    assert list(result.rates) == ["int8", "fp32"] and result.baseline == "int8"
    assert [subject["precision"] for subject in result.subjects.values()] == ["int8", "fp32"]
    (two_precisions / "onnx/model.onnx").unlink()  # only int8 is asked for, here and in the process of its own
    result = bench([two_precisions], precision=["int8"], compare=bundled("doge-nano"), **QUICK)
    assert list(result.rates) == ["int8", "transformers"]
    with pytest.raises(DogeExportError, match="has no int8 graph"):
        bench([two_precisions, nano_folder], precision=["int8"], **QUICK)


class Recorder:
    """A subject that takes as long as it is told, and notes when it was asked."""

    spins = False

    def __init__(self, name, log, seconds):
        self.name, self._log, self._seconds = name, log, iter(seconds)

    def read(self, prompt):
        self._log.append((self.name, "read", prompt.shape[1]))
        return next(self._seconds)

    def step(self, count):
        self._log.append((self.name, "step", count))
        return 0.5

    def generate(self, prompt, new_tokens):
        self._log.append((self.name, "generate", new_tokens))
        return 2.0


def test_subjects_take_turns_and_the_first_round_does_not_count():
    from doge_export.benchmark.bench import _interleaved, _measures

    log = []
    # Three reads a round: the generation's prompt, the long prompt, the context.
    subjects = [
        Recorder(name, log, [99, 99, 99, *(scale * n for n in range(1, 7))]) for name, scale in (("a", 1), ("b", 10))
    ]
    rates, seconds = _interleaved(subjects, _measures(np.zeros((1, 50), np.int64), 3, 8, 20, [40]), rounds=2)
    a_round = [("read", 3), ("generate", 8), ("read", 20), ("read", 40), ("step", 10)]  # 10: there is room for no more
    for name in "ab":
        assert [(what, size) for who, what, size in log if who == name] == a_round * 3
    assert [who for who, what, _ in log if what == "generate"] == ["b", "a", "a", "b", "b", "a"]
    assert rates["a"]["decode"] == [4.0, 4.0, 4.0]
    assert rates["a"]["decode@40"] == [20.0, 20.0, 20.0]
    assert seconds["b"]["first_token"] == pytest.approx([13.0, 25.0, 37.0])  # of 10 and 40
    assert seconds["a"]["first_token@40"] == pytest.approx([3.3, 4.5, 5.7])
    assert rates["a"]["prefill"] == pytest.approx(np.percentile([20 / 2, 20 / 5], [10, 50, 90]))


@pytest.mark.parametrize("kind", ["exported", "transformers", "module"])
def test_what_is_timed_is_greedy_generation(kind, nano_folder):
    """The token that a subject stands at after a prompt and steps is the one that generation writes."""
    session = doge_export.load(nano_folder, threads=1)
    prompt = session.tokenizer.encode("Once upon a time")
    expected = session.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=[]).token_ids
    if kind == "exported":
        subject = TimedSession("ours", session)
    elif kind == "transformers":
        subject = load_reference(open_checkpoint("doge-nano"), None)
        assert subject.name == kind
    else:
        from doge_export.benchmark.reference import ModuleReference

        subject = ModuleReference(open_checkpoint("doge-nano"), "reference")
    for _ in range(2):  # a prompt begins anew
        assert subject.read(np.array([prompt])) > 0
        assert int(subject._token[0, 0]) == expected[0]
        assert subject.step(7) > 0
        assert int(subject._token[0, 0]) == expected[7]
        assert subject.generate(np.array([prompt]), 3) > 0


def test_the_number_of_threads_is_that_of_the_turns_alone():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_an_older_generation_is_compared_with_the_module_and_the_table_says_so(tmp_path):
    folder = export(GOLDEN / "g4b-additive", tmp_path / "out", validate=False).folder
    done = run(folder, "--compare", GOLDEN / "g4b-additive", *QUICK_OPTIONS)
    assert done.exit_code == 0
    assert "doge-export's PyTorch module" in done.stdout and "transformers has no G4b" in done.stdout
    assert "ratio" in done.stdout


def test_probe_measures_a_process_of_its_own(nano_folder):
    seen = probe(nano_folder, 1, 4)
    assert 0 < seen["load_seconds"] < seen["first_token_seconds"]
    assert seen["base_bytes"] < seen["peak_bytes"]


def test_machine_says_what_it_was():
    seen = machine()
    assert seen["cpu"] and seen["cpus"] >= 1
    assert seen["onnxruntime"] and seen["date"].endswith("+00:00")


@pytest.mark.parametrize("options", [{"prompt_length": 100_000}, {"context": [64, 256]}])
def test_a_prompt_or_a_context_that_leaves_no_room(nano_folder, options):
    with pytest.raises(DogeExportError, match="leave no room"):
        bench(nano_folder, **options)


def test_more_tokens_than_the_export_holds_are_cut(nano_folder):
    settings = bench(nano_folder, rounds=1, new_tokens=100_000, prompt_length=240, prefill_length=8).settings
    assert settings["new_tokens"] == 256 - 240


@pytest.mark.parametrize("options", [{}, {"threads": -1}])
def test_a_folder_that_is_none_is_one_line(tmp_path, options):
    with pytest.raises(DogeExportError):
        bench(tmp_path, **options)


def test_a_comparison_with_no_checkpoint_is_one_line(nano_folder, tmp_path):
    with pytest.raises(DogeExportError, match=r"config\.json"):
        bench(nano_folder, compare=tmp_path, **QUICK)


def test_command_prints_json(nano_folder):
    done = run(nano_folder, "--json", "--context", 12, *QUICK_OPTIONS)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["rates"]["doge-export"]["prefill"][1] > 0
    assert found["settings"]["contexts"] == [12]
    assert found["machine"]["onnxruntime"]


def test_command_prints_a_table(nano_folder, nano_moe_folder):
    done = run(nano_folder, nano_moe_folder, "--context", 12, *QUICK_OPTIONS)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    titles = [line for line in lines if "p10 to p90" in line]
    assert len(titles) == 5 and titles[0].startswith("decode 2 after 16")
    assert any(line.startswith(f"  {nano_moe_folder}") and line.endswith("x") for line in lines)
    assert "peak memory" in done.stdout and "onnxruntime" in lines[-1]


@pytest.mark.parametrize("suffix, start", [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_plot(nano_folder, tmp_path, suffix, start):
    file = tmp_path / f"speed{suffix}"
    done = run(nano_folder, "--plot", file, *QUICK_OPTIONS)
    assert done.exit_code == 0
    assert file.read_bytes().startswith(start)
    assert "first token at context 128" in done.stdout
    if suffix == ".svg":
        drawn = file.read_text(encoding="utf-8")
        assert all(text in drawn for text in (">64<", ">128<", "decoding, ms per token", "doge-export"))


def test_contexts_to_plot_double_as_far_as_every_folder_holds_them(nano_folder, exported):
    assert contexts_to_plot([nano_folder]) == [64, 128]
    assert contexts_to_plot([nano_folder, exported()]) == [36]  # holds 72


@pytest.mark.parametrize(
    "name, message",
    [("plot.pdf", "neither .svg nor .png"), ("none/plot.svg", "does not exist"), ("d.svg", "is a folder")],
)
def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path, name, message):
    (tmp_path / "d.svg").mkdir()
    done = run(tmp_path / "not-even-a-folder", "--plot", tmp_path / name)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_plot_without_matplotlib_is_one_line(nano_folder, tmp_path, monkeypatch):
    import builtins

    whole = builtins.__import__

    def without(name, *arguments):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return whole(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run(nano_folder, "--plot", tmp_path / "plot.svg")
    assert done.exit_code == 2
    assert "matplotlib is not installed" in done.stderr and done.stderr.count("\n") == 1
