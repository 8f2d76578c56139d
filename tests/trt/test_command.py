"""`doge-export trt`, where TensorRT is missing and where a recorder stands for it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnxruntime_engine import make_execute
from pages import lines_of

from doge_export import export
from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.package import read_manifest, verify_files
from doge_export.package.onnx_file import write_onnx
from doge_export.runtime import load
from doge_export.runtime.engine import installation
from doge_export.trt import make
from doge_export.trt.on_cpu import runnable
from doge_export.trt.selftest import ENGINES, Engine, selftest
from doge_export.validation.tolerance import FLOAT16

SUBJECTS = ("engine", "pytorch", "onnxruntime")
WITHOUT = "import sys; sys.modules |= dict.fromkeys(['tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'])"
NANO = ("doge-nano", "--fp32", "--max-length", "80", "--max-batch", "2")


def run(*arguments):
    return CliRunner().invoke(main, ["trt", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_without_tensorrt_one_line_and_nothing_written(tmp_path):
    """In a process of its own, since tests of this one may have imported the bindings, and without either TensorRT."""
    done = subprocess.run(
        [sys.executable, "-c", f"{WITHOUT}; import doge_export.__main__ as m; m.run()", "trt", "doge-nano", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("doge-export: error: ")
    assert install_command("rtx") in line and install_command("trt") in line
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("gone", "asked", "named"),
    [
        ({"tensorrt"}, (), "engines need TensorRT, which this Python lacks: "),
        ({"tensorrt"}, ("--builder", "tensorrt"), "needs TensorRT (Python package tensorrt), which"),
        (set(), ("--builder", "rtx"), "needs TensorRT for RTX (Python package tensorrt_rtx_bindings), which"),
        ({"cuda.bindings.runtime"}, (), "through cuda-python, which"),
        ({"tensorrt", "cuda.bindings.runtime"}, (), "engines need TensorRT, which this Python lacks: "),
    ],
)
def test_what_is_missing_is_named(machine, monkeypatch, tmp_path, gone, asked, named):
    known = installation._imported
    monkeypatch.setattr(installation, "_imported", lambda name: None if name in gone else known(name))
    done = run("doge-nano", tmp_path / "out", *asked)
    assert done.exit_code == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_no_driver_and_an_old_tensorrt_are_named(machine, tmp_path):
    machine.cuda.fail["cudaGetDeviceCount"] = "cudaErrorInsufficientDriver"
    done = run("doge-nano", tmp_path / "out")
    assert done.exit_code == 2 and "cudaErrorInsufficientDriver" in done.stderr
    machine.trt.__version__ = "10.8.0.43"
    done = run("doge-nano", tmp_path / "out")
    assert done.exit_code == 2 and "10.9 or newer is needed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a MODEL_OR_FOLDER"),
        (("doge-nano",), "name a MODEL_OR_FOLDER"),
        (("doge-nano", "out", "--tensorrt", "11.4"), "--tensorrt is what --dry-run plans for"),
        (("doge-nano", "--dry-run", "--tensorrt", "eleven"), "--tensorrt is eleven"),
        (("doge-nano", "--dry-run", "--tensorrt", "11.4", "--builder", "rtx"), "--tensorrt is a version of TensorRT"),
        (("doge-nano", "out", "--gpu", "rtx4090", "--compute-capability", "89"), "give one of the two"),
        (("doge-nano", "out", "--builder", "rtx", "--gpu", "tnt2"), "--gpu is 'tnt2'"),
        (("doge-nano", "out", "--builder", "rtx", "--compute-capability", "ada"), "--compute-capability is 'ada'"),
        (("doge-nano", "out", "--gpu", "rtx4090"), "builds for the GPU of this machine"),
        (("doge-nano", "out", "--compute-capability", "89"), "builds for the GPU of this machine"),
    ],
)
def test_requests_that_make_no_sense(machine, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_settings_are_refused_before_anything_is_read(machine, tmp_path):
    done = run("no-such-model", tmp_path / "out", "--embed-plugin")
    assert done.exit_code == 2 and "--version-compatible" in done.stderr


@pytest.mark.parametrize("builder", ["tensorrt", "rtx"])
def test_a_plan_needs_nothing(builder):
    """TensorRT for RTX has no trtexec, and no version to plan for."""
    done = run(*NANO, "--dry-run", "--json", "--builder", builder)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["precision"] == "fp32" and facts["findings"] == [] and facts["plugin_nodes"] == 4
    if builder == "tensorrt":
        assert facts["trtexec"].startswith("trtexec ") and facts["tensorrt"] == "11.4"
    else:
        assert facts["trtexec"] is None and facts["tensorrt"] is None
    assert facts["memory"]["caches"] > 0
    assert [*facts["profiles"]] == ["prefill", "decode"]


def test_a_plan_in_words():
    done = run(*NANO, "--dry-run", "--tensorrt", "10.9")
    assert done.exit_code == 0, done.stderr
    assert "no findings" in done.stdout and "trtexec" in done.stdout
    assert "inputs.past_key_values.0.key" in done.stdout and "inputs.past_key_values.1.key" not in done.stdout


def test_a_plan_with_native_attention_looks_at_its_values():
    done = run("doge-nano", "--attention", "native", "--max-length", 64, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["plugin_nodes"] == 0 and 1 < facts["typing"]["largest"]["MatMul"]["magnitude"] < 65504


def test_a_plan_of_an_export(tmp_path):
    """Of target canonical, where the checkpoint may be gone; how one would be fetched does not matter."""
    folder = tmp_path / "export"
    export("doge-nano", folder, target="canonical", max_length=96, validate=False)
    done = run(folder, "--dry-run", "--json", "--offline", "--max-length", 80)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["max_length"] == 80
    done = run(folder, "--dry-run", "--cdmoe-routing", "per-token")
    assert done.exit_code == 2 and "is an export, where cdmoe_routing is decided" in done.stderr


def test_an_engine_from_command_to_answer(machine, monkeypatch, tmp_path):
    """Built, validated against PyTorch, listed, verified, asked: all by the commands, TensorRT being a recorder."""
    machine.trt.make_execute = make_execute
    planned, plan = [], make.plan_engine
    monkeypatch.setattr(
        make, "plan_engine", lambda *given, **options: planned.append(plan(*given, **options)) or planned[-1]
    )
    out, results = tmp_path / "out", tmp_path / "results"
    done = run(*NANO, out, "--no-tf32", "--timing-cache", tmp_path / "cache", "--keep-onnx", "--save-results", results)
    assert done.exit_code == 0, done.stderr
    assert "PASSED" in done.stdout
    answers = {"engine.json", "pytorch.json", "onnxruntime.json"}
    assert {file.name for file in results.iterdir()} == {"inputs.json", *answers}
    apart = re.findall(r"^(\w+), (\w+): logits apart by \S+ on average, (\S+) at most", done.stdout, re.MULTILINE)
    assert {frozenset(pair) for *pair, _ in apart} == {*map(frozenset, itertools.combinations(SUBJECTS, 2))}
    assert all(float(most) < 1e-4 for *_, most in apart)
    assert [line for line in done.stdout.splitlines() if line.startswith("[")] == []  # polygraphy's log
    assert verify_files(out) == []
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"engine/model.engine", "engine/engine.json", "engine/model.onnx", "tokenizer.json", "README.md"} <= names
    sidecar = json.loads((out / "engine/engine.json").read_text())
    assert sidecar["plugin"]["sha256"] == machine.plugin.sha256 and sidecar["plugin_layers"] == 4
    assert sidecar["compute_capabilities"] == [[8, 9]] and sidecar["tensorrt"] == "11.4.0.106"
    assert machine.trt.settings["flag.TF32"] is False

    def doge(*arguments):
        invoked = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
        assert invoked.exit_code == 0, invoked.stderr
        return invoked.stdout

    assert "compute_capabilities" in doge("inspect", out)
    answer = doge("generate", out, "Once upon a time", "--max-new-tokens", 6, "--greedy")
    assert answer.startswith(", there was")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little boy.")
    assert "perplexity" in doge("eval", out, "--text", text).lower()
    saved_results_can_be_read_by_polygraphy(results)
    the_readmes_polygraphy_line_compares(out, results, tmp_path)

    taken = sum(map(len, machine.cuda.device.values()))
    session = load(out)
    taken = sum(map(len, machine.cuda.device.values())) - taken - session.decoder.scratch_bytes
    assert abs(taken / (planned[0].memory.caches + planned[0].memory.io) - 1) < 0.05

    again = run(*NANO, out)
    assert again.exit_code == 2 and "--force" in again.stderr


def saved_results_can_be_read_by_polygraphy(folder):
    from polygraphy.comparator import Comparator, RunResults, SimpleCompareFunc
    from polygraphy.json import load_json

    (feed,) = load_json(str(folder / "inputs.json"))
    assert feed["input_ids"].shape == (1, 16) and feed["past_key_values.0.key"].shape[2] == 80
    engine, reference = (RunResults.load(str(folder / f"{name}.json")) for name in ("engine", "pytorch"))
    together = RunResults([*engine.lst, *reference.lst])
    assert [*together.keys()] == ["engine", "pytorch"]
    same = Comparator.compare_accuracy(together, compare_func=SimpleCompareFunc(atol=1e-3, rtol=1e-3))
    assert bool(same)


def the_readmes_polygraphy_line_compares(out, results, folder):
    """Run as it is written, but for the model: onnxruntime on the graph with function bodies stands for the engine."""
    from polygraphy.comparator import RunResults

    model = folder / "runnable.onnx"
    write_onnx(runnable(ir.load(out / "engine/model.onnx")), model)
    (line,) = lines_of("polygraphy run")
    words = shlex.split(line.replace("results/", f"{results}/"))[2:]
    of_tensorrt = ["--model-type", "engine", "--trt", "--plugins"]
    start = words.index(of_tensorrt[0])
    assert words[start : start + 4] == of_tensorrt
    words = [str(model), "--onnxrt", *words[start + 5 :]]
    code, said = polygraphy_run(words)
    assert code == 0 and "PASSED" in said, said
    reference = RunResults.load(str(results / "pytorch.json"))
    ((_, (answers,)),) = reference.items()
    answers["logits"] = answers["logits"] + np.float32(0.1)
    reference.save(str(results / "pytorch.json"))
    code, said = polygraphy_run(words)
    assert code == 1 and "FAILED" in said, said


def polygraphy_run(words):
    """Exit code and output of the program, in this process: in its own it would import torch for seconds."""
    program = Path(sys.executable).parent / "polygraphy"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", [str(program), "run", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(program), run_name="__main__")
    return ended.value.code or 0, said.getvalue()


def test_tf32_is_asked_for_and_judged_by_its_own_bars(machine, tmp_path):
    """Off else: in 16 bits it would round the scores of keys and experts, in 32 more than the bars allow."""
    machine.trt.make_execute = make_execute
    assert run(*NANO, tmp_path / "plain", "--no-validate").exit_code == 0
    assert machine.trt.settings["flag.TF32"] is False
    del machine.trt.settings["flag.TF32"]
    assert run(*NANO, tmp_path / "out", "--tf32").exit_code == 0
    assert "flag.TF32" not in machine.trt.settings
    manifest = read_manifest(tmp_path / "out")
    assert manifest.validation["tolerances"]["mean_kl"] == FLOAT16.mean_kl


def test_a_failed_validation_writes_nothing(machine, tmp_path):
    def wrong(graph):
        execute = make_execute(graph)

        def far_off(feeds):
            outputs = execute(feeds)
            outputs["logits"] += np.float32(0.5) * (outputs["logits"] > 0)
            return outputs

        return far_off

    machine.trt.make_execute = wrong
    done = run(*NANO, tmp_path / "out")
    assert done.exit_code == 1 and "FAILED" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_selftest_goes_on_and_reports(machine, tmp_path):
    """Two engines work; one between them cannot be built."""
    machine.trt.make_execute = make_execute
    engines = (
        Engine("doge-nano", "bf16", options={"max_length": 70}),
        Engine("doge-nano", "fp32", "native", {"max_length": 70}),
        Engine("doge-nano", "fp16", "native", {"max_length": 64}),
    )
    report = tmp_path / "report.json"
    result = selftest(report, engines=engines)
    assert json.loads(report.read_text()) == json.loads(json.dumps(result))
    said = {case["name"].removeprefix("doge-nano "): case["said"] for case in result["cases"] if not case["ok"]}
    assert [*said] == ["fp32 native: build"], said
    assert "keep_window_size 64" in said["fp32 native: build"]
    for engine in ("bf16 plugin", "fp16 native"):
        cases = [case["name"].partition(": ")[2] for case in result["cases"] if engine in case["name"]]
        assert cases == ["build", "validate", "generate", "bench"]
    assert result["machine"]["gpu"] == "NVIDIA GeForce RTX 4090"
    assert not machine.cuda.device


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_all_engines_of_the_selftest(machine, tmp_path, engine):
    machine.trt.make_execute = make_execute
    result = selftest(tmp_path / "report.json", engines=(engine,))
    assert [case["said"] for case in result["cases"] if not case["ok"]] == []
    assert len(result["cases"]) == 4


def test_the_selftest_needs_a_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "_imported", lambda name: None)
    with pytest.raises(DogeExportError, match="which this Python lacks"):
        selftest(tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()
