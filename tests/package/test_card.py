import copy

import pytest

from doge_export.package import Manifest, write_card

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
        "onnx/model.onnx": {
            "precision": "fp32",
            "interface": "in-place",
            "opset": {"": 21, "com.microsoft": 1},
            "ir_version": 10,
            "nodes": 345,
            "onnxruntime": "1.30",
        }
    },
    "chunkable_length": 2048,
    "files": {},
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


def manifest(**changes):
    """MANIFEST with some entries changed; None takes one out."""
    values = {**copy.deepcopy(MANIFEST), **changes}
    return Manifest.from_dict({name: value for name, value in values.items() if value is not ...})


@pytest.fixture
def card(tmp_path):
    """Writes the card of MANIFEST with some entries changed and returns it."""

    def write(**changes):
        write_card(tmp_path, manifest(**changes))
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
    assert "| `onnx/model.onnx` | fp32 | ai.onnx 21, com.microsoft 1 | 10 | 1.30 | 345 |" in text


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


@pytest.mark.parametrize(("judged", "is_said"), [(2047, True), (2048, False), (None, False), ("x", False)])
def test_how_far_a_comparison_reached_is_said(card, judged, is_said):
    quality = {"kl_mean": 0.1, "kl_standard_error": 0.1, "kl_p99": 0.1, "limit": 1, "argmax_agreement": 1}
    quality |= {"perplexity_ratio": 1, "positions": 9, "text": "text", "judged_length": judged}
    half = {**MANIFEST["graphs"]["onnx/model.onnx"], "typing": {"largest": {"x": {"magnitude": 1.0}}}}
    graphs = {**MANIFEST["graphs"], "onnx/model_fp16.onnx": {**half, "quality": quality}}
    text = card(validation={**MANIFEST["validation"], "judged_length": judged}, graphs=graphs)
    assert text.count("Judged up to token 2047 of the 2048 that this folder holds") == 2 * is_said


def test_failure_is_said(card):
    assert "**FAILED** against" in card(validation={**MANIFEST["validation"], "passed": False})


@pytest.mark.parametrize("validation", [{"skipped": "--no-validate"}, {"skipped": "a reason"}])
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


def test_a_language_model_is_generated_with(card):
    text = card()
    assert "A Doge language model as an ONNX graph: 8 layers" in text
    assert "doge-export generate out" in text and "session.generate(" in text
    assert "At most 2048 tokens, prompt and answer together." in text


@pytest.mark.parametrize(
    ("task", "what", "command", "call", "compared"),
    [
        ("feature-extraction", "to the last hidden states", "embed", "session.embed(", "hidden states"),
        ("text-classification", "A Doge text classifier", "classify", "session.classify(", "logits"),
    ],
)
def test_other_tasks_speak_of_themselves(card, task, what, command, call, compared):
    text = card(task=task)
    assert f"pipeline_tag: {task}\n" in header(text)
    assert what in text and call in text and f"doge-export {command} out" in text
    assert (
        f"Differences are those of the {compared}, also in standard deviations of the reference's {compared}." in text
    )
    assert "At most 2048 tokens in a text." in text
    assert "generate" not in text and "language model" not in text


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction", "text-classification"])
def test_what_the_card_tells_to_run_is_there(card, task):
    """Commands exist, and so do their options; the Python parses and calls a method of the task's session."""
    import ast
    import re

    import click

    from doge_export.cli import main
    from doge_export.runtime import ClassificationSession, FeatureSession, Session

    text = card(task=task)
    sessions = {kind.task: kind for kind in (Session, FeatureSession, ClassificationSession)}
    context = click.Context(main)
    for name, rest in re.findall(r"^doge-export (\w+) (.*)$", text, re.MULTILINE):
        known = {option for parameter in main.get_command(context, name).params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--[\w-]+", rest)) <= known
    code = text.split("```python\n")[1].split("```")[0]
    called = [
        node.func.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and hasattr(node.func, "attr")
    ]
    methods = [name for name in called if name not in ("load", "print")]
    assert methods and all(callable(getattr(sessions[task], name)) for name in methods)


def test_the_generation_is_named(card):
    architecture = {**MANIFEST["architecture"], "generation": "G4b"}
    assert "- generation G4b of Doge\n" in card(architecture=architecture)
    experts = {"num_experts": 64, "num_experts_per_tok": 4, "variant": "M6"}
    assert "- generation G4b of Doge, mixture of experts M6\n" in card(architecture={**architecture, "moe": experts})
    assert "- generation" not in card()


def test_what_was_said_of_the_checkpoint_is_said(card):
    text = card(assumptions={"task": "text-generation", "generation": "G4a", "ratio_mask": "all"})
    assert "leave it open: generation G4a, ratio mask all\n" in text
    assert "leave it open" not in card(assumptions={"task": "text-generation"})


def test_labels_are_listed(card):
    architecture = {**MANIFEST["architecture"], "labels": ["good", "not good"]}
    assert "- labels: `good`, `not good`\n" in card(architecture=architecture, task="text-classification")


def test_a_generation_whose_tokens_may_see_no_key(card):
    assert "may see no key at all" in card(chunkable_length=0)
    assert "may see no key at all" not in card(chunkable_length=0, cdmoe_routing="reference")
    assert "may see no key at all" not in card(chunkable_length=64)


def test_canonical_target(card):
    assert "Target `canonical`: compilers with a plugin" in card(target="canonical")
