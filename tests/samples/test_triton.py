"""The sample that writes a model repository for Triton: configurations, and the python model in a made-up Triton."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from doge_export import load

SAMPLE = Path(__file__).parents[2] / "samples" / "triton"


@pytest.fixture(scope="module")
def sample():
    """The modules of the sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        import model_config
        import model_repository

        yield types.SimpleNamespace(config=model_config, repository=model_repository)


@pytest.fixture
def run(sample, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["model_repository.py", *map(str, arguments)])
        sample.repository.main()
        return capsys.readouterr().out

    return call


def read(sample, file):
    message = sample.config.read(file.read_text())
    sample.config.check(message)
    return message


def test_text_in_and_text_out(sample, run, bundled_folder, tmp_path, monkeypatch):
    """The python model streams what `generate` writes, and tells what fails."""
    folder = bundled_folder("doge-nano")
    assert "tritonserver" in run(folder, tmp_path / "repository", "--name", "doge")
    model = tmp_path / "repository" / "doge"
    config = read(sample, model / "config.pbtxt")
    assert config["backend"] == ["python"] and config["model_transaction_policy"] == [{"decoupled": ["true"]}]
    assert [each["name"] for each in config["input"]] == [["text_input"], ["max_tokens"], ["temperature"], ["seed"]]
    with pytest.raises(SystemExit, match="is there already"):
        run(folder, tmp_path / "repository", "--name", "doge")
    assert [each.name for each in (tmp_path / "repository").iterdir()] == ["doge"]

    utilities = types.ModuleType("triton_python_backend_utils")
    utilities.Tensor = lambda name, array: (name, array)
    utilities.InferenceResponse = lambda outputs=(), error=None: types.SimpleNamespace(outputs=outputs, error=error)
    utilities.TritonError = str
    utilities.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utilities.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
    served = runpy.run_path(str(model / "1" / "model.py"))["TritonPythonModel"]()
    strings = [{key: each[key][0] for key in ("key", "value")} for each in config["parameters"]]
    parameters = {each["key"]: {"string_value": each["value"]["string_value"][0]} for each in strings}
    served.initialize({"model_config": json.dumps({"parameters": parameters})})

    def ask(**inputs):
        sent, flags = [], []

        def send(response=None, flags=0, ended=flags):
            ended.append(flags) if response is None else sent.append(response)

        tensors = {
            name: types.SimpleNamespace(as_numpy=lambda v=value: np.asarray(v).reshape(1))
            for name, value in inputs.items()
        }
        request = types.SimpleNamespace(inputs=tensors, is_cancelled=lambda: False)
        request.get_response_sender = lambda: types.SimpleNamespace(send=send)
        served.execute([request])
        assert flags == [1]
        return sent

    settings = {"max_tokens": np.int32(12), "temperature": np.float32(0)}
    pieces = [response.outputs[0] for response in ask(text_input=np.array(b"Once upon", object), **settings)]
    wanted = load(folder, threads=1).generate("Once upon", max_new_tokens=12, temperature=0)
    assert b"".join(array[0] for _, array in pieces).decode() == wanted.text and {name for name, _ in pieces} == {
        "text_output"
    }
    (failed,) = ask(text_input=np.array(b"fox " * 3000, object))
    assert "tokens" in failed.error
    served.finalize()


def test_caches_that_are_bound_in_place_are_refused(run, bundled_folder, tmp_path):
    with pytest.raises(SystemExit, match="--target portable"):
        run(bundled_folder("doge-nano"), tmp_path, "--backend", "onnxruntime")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, told",
    [
        ('nam: "a"', "no field nam"),
        ('name: "a" name: "b"', "2 values"),
        ("name: a", "another type"),
        ("max_batch_size: x", "another type"),
        ('input { name: "a" data_type: TYPE_FP8 dims: [ 1 ] }', "expected one of"),
        ('input { name: "a" data_type: TYPE_FP32 }', "dims is missing"),
        ('input { name: "a" data_type: TYPE_FP32 dims: [ 0 ] }', "expected extents"),
        ('instance_group [ { count: "1" } ]', "another type"),
        ("input {", "not closed"),
        ("}", "closes nothing"),
        ('name: "a', "cannot read"),
        ("name:", "ends before"),
    ],
)
def test_what_triton_would_refuse_is_refused(sample, text, told):
    with pytest.raises(ValueError, match=told):
        sample.config.check(sample.config.read(text))


def test_what_is_written_is_read(sample):
    word = sample.config.Word("TYPE_INT64")
    scalar = {"name": 'a"\\\n', "data_type": word, "dims": [1], "reshape": {"shape": []}}
    text = sample.config.written({"name": "a", "input": [scalar, {**scalar, "name": "b"}]}) + "# an end"
    found = sample.config.read(text)
    sample.config.check(found)
    assert found["input"][0] == {"name": ['a"\\\n'], "data_type": [word], "dims": [1], "reshape": [{"shape": []}]}
    assert len(found["input"]) == 2
