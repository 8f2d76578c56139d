"""The commands of a folder with either backend, and what they say where the native decoder cannot be had."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.package.manifest import MODEL, read_manifest
from doge_export.plugin import cpu_library
from doge_export.runtime import loading
from doge_export.runtime.loading import load, open_decoder


def run(*arguments):
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, catch_exceptions=False, prog_name="doge-export")


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.delenv("DOGE_EXPORT_CPU_LIBRARY", raising=False)
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_library, "INSTALLED", tmp_path / "installed")


def test_answers_of_both_backends_are_one(nano_folder, native_library):
    answers = [
        run("generate", nano_folder, "Once upon a time", "--json", "--backend", backend, "--max-new-tokens", 12)
        for backend in ("native", "graph")
    ]
    assert [json.loads(each.stdout)["text"] for each in answers] == [json.loads(answers[0].stdout)["text"]] * 2


def test_sampling_is_that_of_the_graph(nano_folder, native_library):
    """Few candidates, all logits, and penalties that need them: each is what the graph gives."""
    sessions = [load(nano_folder, threads=1, backend=backend) for backend in ("native", "graph")]
    for settings in ({"top_k": 5}, {"top_k": 50}, {"temperature": 0.8}, {"repetition_penalty": 1.3, "top_k": 8}):
        texts = [session.generate("One day", seed=3, max_new_tokens=12, **settings).text for session in sessions]
        assert texts[0] == texts[1], settings


@pytest.mark.parametrize("backend", ["native", None])
def test_the_native_decoder_is_the_default_where_it_has_kernels(nano_folder, native_library, monkeypatch, backend):
    decoder = load(nano_folder, threads=1, backend=backend).decoder
    is_plain = decoder.computes_by.startswith("native decoder, plain")
    assert decoder.backend == "native" or (backend is None and is_plain)
    assert load(nano_folder, threads=1, providers="CPUExecutionProvider").decoder.backend == "graph"
    monkeypatch.setattr(loading, "NATIVE_BY_DEFAULT", False)
    assert load(nano_folder, threads=1).decoder.backend == "graph"


def test_without_a_library_everything_works_as_before(nano_folder, without_library):
    assert load(nano_folder, threads=1).decoder.backend == "graph"
    done = run("generate", nano_folder, "Hello", "--backend", "native")
    assert done.exit_code == 2 and not done.stdout
    assert "cannot be run by the native decoder: the native decoder is not compiled" in done.stderr
    facts = json.loads(run("doctor", "--json").stdout)
    assert "plugin build --cpu" in facts["native"]["missing"]


def test_a_library_of_another_interface_is_one_line(nano_folder, native_library, monkeypatch):
    from doge_export.runtime.native import backend, interface

    monkeypatch.setattr(interface, "INTERFACE", 99)
    backend._loaded.cache_clear()
    with pytest.raises(DogeExportError, match="has interface 3, this doge-export calls 99") as caught:
        load(nano_folder, backend="native")
    assert "\n" not in str(caught.value)
    assert load(nano_folder, threads=1).decoder.backend == "graph"
    backend._loaded.cache_clear()


def test_doctor_says_which_instructions_are_used(native_library):
    facts = json.loads(run("doctor", "--json").stdout)["native"]
    assert facts["library"] == str(native_library) and facts["chosen"] == facts["usable"][-1]
    text = run("doctor").stdout
    assert f"computes with {facts['chosen']}: the best" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "gpu"}, "backend is 'gpu', expected one of native, graph"),
        ({"backend": "native", "providers": "CPUExecutionProvider"}, "execution providers are onnxruntime's"),
    ],
)
def test_wrong_requests(nano_folder, native_library, options, message):
    with pytest.raises(DogeExportError, match=message):
        load(nano_folder, **options)


def test_fewer_layers_than_the_graph_has_are_told(exported, native_library, tmp_path):
    folder = shutil.copytree(exported(), tmp_path / "folder")
    manifest = read_manifest(folder)
    manifest.architecture["num_hidden_layers"] = 1
    with pytest.raises(DogeExportError, match="it has more than 1 layers"):
        open_decoder(folder, manifest, backend="native")
    assert (folder / MODEL).exists()


def test_options_of_gpus_are_refused_beside_cpu():
    for option in (["--no-cuda"], ["--gpu", "rtx4090"], ["--nvcc", "nvcc"]):
        done = run("plugin", "build", "--cpu", *option)
        assert done.exit_code == 2 and "which --cpu leaves out" in done.stderr
    done = run("plugin", "build", "--target", "windows")
    assert done.exit_code == 2 and "add --cpu" in done.stderr
