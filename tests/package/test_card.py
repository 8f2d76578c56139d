import copy

import pytest

from doge_export.package import write_card

MANIFEST = {
    "format": 1,
    "doge_export": "0.1.0",
    "source": {"model": "SmallDoge/Doge-20M-Instruct", "revision": "a" * 40, "files": {}},
    "architecture": {
        "vocab_size": 32768,
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "moe": None,
    },
    "target": "onnxruntime",
    "max_length": 2048,
    "cdmoe_routing": None,
    "graphs": {
        "onnx/model.onnx": {"dtype": "float32", "opset": {"": 21, "com.microsoft": 1}, "ir_version": 10, "nodes": 345}
    },
    "versions": {"python": "3.12.1", "torch": "2.13.0"},
    "validation": {
        "passed": True,
        "reference": {"library": "transformers", "version": "5.23.0", "attention": "eager", "dtype": "float32"},
        "checks": [
            {
                "name": "prefill",
                "status": "passed",
                "metrics": {
                    "max_abs": 3.1e-06,
                    "max_abs_over_std": 1.2e-06,
                    "argmax_agreement": 1.0,
                    "kl_max": 2e-13,
                },
            },
            {"name": "beyond the trained length", "status": "not run", "metrics": {}, "note": "not run: too short"},
        ],
    },
}


@pytest.fixture
def card(tmp_path):
    """Writes the card of MANIFEST with some entries changed and returns it."""

    def write(**changes):
        write_card(tmp_path, {**copy.deepcopy(MANIFEST), **changes})
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    return write


def header(text: str) -> str:
    return text.split("---\n")[1]


def test_header_of_a_hub_model(card):
    assert header(card()) == (
        'base_model: "SmallDoge/Doge-20M-Instruct"\n'
        "base_model_relation: quantized\n"
        "pipeline_tag: text-generation\n"
        "library_name: onnxruntime\n"
        "tags:\n- onnx\n- onnxruntime\n- doge\n"
    )


def test_header_is_yaml(card):
    yaml = pytest.importorskip("yaml")
    source = {"model": 'we"ird: #name', "revision": "b" * 40, "license": "apache-2.0"}
    assert yaml.safe_load(header(card(source=source))) == {
        "license": "apache-2.0",
        "base_model": 'we"ird: #name',
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "library_name": "onnxruntime",
        "tags": ["onnx", "onnxruntime", "doge"],
    }


def test_hub_model_is_named_with_its_full_revision(card):
    text = card()
    assert "# SmallDoge/Doge-20M-Instruct as ONNX\n" in text
    assert f"- exported from `SmallDoge/Doge-20M-Instruct`, revision `{'a' * 40}`" in text
    assert "- by doge-export 0.1.0 (python 3.12.1, torch 2.13.0)" in text
    assert "| `onnx/model.onnx` | float32 | ai.onnx 21, com.microsoft 1 | 10 | 345 |" in text


def test_local_folder_keeps_its_path_to_itself(card):
    text = card(source={"model": "/home/somebody/secret/my-doge/", "revision": None, "files": {}})
    assert "# my-doge as ONNX\n" in text
    assert "from a local folder" in text
    assert "somebody" not in text
    assert "base_model" not in text


def test_parity_table(card):
    text = card()
    assert "**PASSED** against transformers 5.23.0 eager float32." in text
    assert "| prefill | passed | 3.1e-06 | 1.2e-06 | 100.00% | 2.0e-13 |" in text
    assert (
        "| beyond the trained length | not run |  |  |  |  |\n\n- beyond the trained length: not run: too short\n"
        in text
    )


def test_failure_is_said(card):
    assert "**FAILED** against" in card(validation={**MANIFEST["validation"], "passed": False})


@pytest.mark.parametrize("validation", [{"skipped": "--no-validate"}, None])
def test_missing_validation_is_said(card, validation):
    text = card(validation=validation)
    assert "**Not validated**" in text
    assert "PASSED" not in text


def test_limits(card):
    text = card(max_length=512, target="portable", cdmoe_routing="reference")
    assert "At most 512 tokens" in text
    assert "Target `portable`: anything that reads ONNX" in text
    assert "Expert routing `reference`" in text
    assert "depend on later tokens" in text
    assert "Expert routing `per-token`" in card(cdmoe_routing="per-token")
    assert "Expert routing" not in card()


def test_experts_are_counted(card):
    architecture = {**MANIFEST["architecture"], "moe": {"num_experts": 256, "num_experts_per_tok": 8}}
    assert "256 experts of which 8 a token" in card(architecture=architecture)
