"""What cannot work ends in one line and exit code 1 or 2: values that are not finite, long texts, little memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import doge_export
from doge_export.errors import DogeExportError, RunFailed
from doge_export.memory import is_out_of_memory


def broken(folder, to, value=np.nan):
    """A copy of an exported folder in which every float weight of one axis is not finite."""
    shutil.copytree(folder, to)
    file = to / "onnx" / "model.onnx"
    model = onnx.load(file)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 1:
            weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, value, np.float32), weight.name))
    onnx.save(model, file)
    return to


def one_line(done, code, *parts):
    assert done.exit_code == code, done.stderr
    assert done.stderr.strip().count("\n") == 0 and done.stderr.startswith("doge-export: error: "), done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def writer(task_export, tmp_path_factory):
    return broken(task_export("text-generation").folder, tmp_path_factory.mktemp("writer") / "out")


class TestNotFinite:
    @pytest.mark.parametrize("options", [(), ("--temperature", 1, "--top-k", 5), ("--repetition-penalty", 1.5)])
    def test_generate(self, run, writer, options):
        one_line(run("generate", writer, "Hello", "--json", *options), 1, "logits that are not finite")

    def test_bench(self, run, writer):
        options = ("--rounds", 1, "--new-tokens", 2, "--prefill-length", 4, "--prompt-length", 4)
        one_line(run("-q", "bench", writer, *options), 1, "logits that are not finite")

    @pytest.mark.parametrize("settings", [{}, {"top_p": 0.5}, {"min_p": 0.5, "top_k": 0}])
    def test_from_python(self, writer, settings):
        session = doge_export.load(writer, threads=1)
        for use in (session.generate, lambda *a, **k: list(session.stream(*a, **k))):
            with pytest.raises(RunFailed, match="logits that are not finite"):
                use("Hello", **settings)
        with pytest.raises(RunFailed, match="logits that are not finite"):
            session.generate(["Hello", "you"], **settings)
        assert np.isnan(session.logits([5, 6])).all()  # numbers are given as they are

    def test_chat(self, run, tmp_path, task_export, writer):
        (tmp_path / "out").mkdir()
        shutil.copytree(writer, tmp_path / "out", dirs_exist_ok=True)
        (tmp_path / "out" / "chat_template.jinja").write_text("{{ messages[-1].content }}")
        done = run("chat", tmp_path / "out", stdin="Hello\n")
        assert done.exit_code == 1 and done.stderr.count("logits that are not finite") == 1

    @pytest.mark.parametrize(
        ("task", "command", "what"),
        [
            ("feature-extraction", "embed", "hidden states that are not finite"),
            ("text-classification", "classify", "logits that are not finite"),
        ],
    )
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_and_classes(self, run, task_export, tmp_path, task, command, what, value):
        folder = broken(task_export(task).folder, tmp_path / "out", value)
        one_line(run("-q", command, folder, "Hello"), 1, what)
        with pytest.raises(RunFailed, match=what):
            getattr(doge_export.load(folder, threads=1), command)("Hello")


class TestLongTexts:
    MILLIONS = "Rex was happy, and the ball was red. " * 300_000  # 11 MB

    def test_are_refused_by_their_length(self, run, task_export):
        folder = task_export("text-generation").folder
        started = time.monotonic()
        for options in ((), ("--chat",)) if doge_export.load(folder).tokenizer.has_chat_template else ((),):
            done = run("generate", folder, "-", *options, stdin=self.MILLIONS)
            one_line(done, 2, "characters: more tokens than this export holds (72)", "--max-length")
        with pytest.raises(DogeExportError, match=r"^text 2: the text has \d+ characters"):
            doge_export.load(task_export("feature-extraction").folder).embed(["x", self.MILLIONS])
        assert time.monotonic() - started < 5  # 15 s and more where it is encoded

    def test_are_cut_without_reading_them_whole(self, task_export):
        session = doge_export.load(task_export("feature-extraction").folder, threads=1)
        started = time.monotonic()
        cut = session.embed(self.MILLIONS, truncate=True)
        assert time.monotonic() - started < 5
        np.testing.assert_array_equal(cut, session.embed(self.MILLIONS[:20_000], truncate=True))


@pytest.mark.parametrize("threads", [0, -1, 100_000, 10**30])
@pytest.mark.parametrize("command", [("generate", "Hello"), ("bench",)])
def test_threads_are_bounded(run, task_export, command, threads):
    name, *rest = command
    folder = task_export("text-generation").folder
    one_line(run(name, folder, *rest, "--threads", threads), 2, f"threads is {threads}, expected 1 or more, up to ")


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
@pytest.mark.parametrize("megabytes", [40, 120, 165])
def test_too_little_memory(task_export, megabytes):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    folder = task_export("text-generation").folder
    done = subprocess.run(
        [sys.executable, "-m", "doge_export", "generate", folder, "Hello", "--max-new-tokens", "2"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert "emory" in done.stderr


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("f4")), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("can't start new thread"), True),
        (ImportError("x.so: failed to map segment from shared object"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_signs_of_too_little_memory(error, is_it):
    assert is_out_of_memory(error) == is_it
    try:
        raise KeyError("x") from error
    except KeyError as later:
        assert is_out_of_memory(later) == is_it


@pytest.mark.parametrize("where", ["load", "run"])
def test_bad_alloc_of_onnxruntime_is_one_line(run, task_export, monkeypatch, where):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    from doge_export.runtime.decoders.in_place import InPlaceDecoder

    def fail(*arguments, **options):
        raise Fail("[ONNXRuntimeError] : 1 : FAIL : Load model failed:std::bad_alloc")

    target = ("onnxruntime.InferenceSession", fail) if where == "load" else (InPlaceDecoder, "_run", fail)
    monkeypatch.setattr(*target)
    folder = task_export("text-generation").folder
    done = run("generate", folder, "Hello", "--no-stream", "--json", "--backend", "graph")
    one_line(done, 1, "not enough memory", "bad_alloc")
