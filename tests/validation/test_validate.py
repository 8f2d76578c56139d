"""The validator passes what is right and fails each single thing that is wrong, in the check that is about it."""

import dataclasses

import pytest
import torch
from manifests import minimal_manifest
from random_doge import MAX_LENGTH, MOE
from validation_subjects import ModelSession, TorchSession

from doge_export.errors import DogeExportError
from doge_export.package import Fingerprint, SourceEntry
from doge_export.validation import references, validate

LOGITS = ["one-shot prefill", "chunked prefill", "cached decode", "left-padded batch"]
WINDOW, TRAINED, GREEDY = "beyond keep_window_size", "beyond trained length", "greedy generation"
EVERY = {*LOGITS, WINDOW, TRAINED, GREEDY}
SMALL = {"num_hidden_layers": 2}
SMALL_MOE = MOE | SMALL


def outcome(verdict):
    """Names of the checks by status."""
    return {
        status: {c.name for c in verdict.checks if c.status == status} for status in ("passed", "failed", "not run")
    }


def failures(checkpoint, max_length=MAX_LENGTH, **spoils):
    verdict = validate("folder", session=TorchSession(checkpoint, max_length=max_length, **spoils))
    assert not verdict.passed
    return verdict, outcome(verdict)["failed"]


def note(verdict, name):
    return next(check.note for check in verdict.checks if check.name == name)


@pytest.mark.parametrize(
    ("changes", "routing"),
    [
        ({}, "reference"),
        (SMALL | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "reference"),
        (SMALL_MOE, "reference"),
        (SMALL_MOE, "per-token"),
        (SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "reference"),
    ],
    ids=["dense", "tied-biased", "moe-reference", "moe-per-token", "default-rope"],
)
def test_the_truth_passes_every_check(checkpoint, changes, routing):
    subject = ModelSession(checkpoint(**changes), max_length=MAX_LENGTH, cdmoe_routing=routing)
    verdict = validate("folder", session=subject)
    assert outcome(verdict) == {"passed": EVERY, "failed": set(), "not run": set()}
    assert verdict.passed and verdict.summary_line().startswith("PASSED")
    # Computed differently, so not a comparison of a thing with itself.
    assert max(check.metrics["max_abs"] for check in verdict.checks) > 0


def test_ignoring_causality_fails(checkpoint):
    _, failed = failures(checkpoint(), causal=False)
    assert {"one-shot prefill", "chunked prefill", "left-padded batch", WINDOW, TRAINED} <= failed
    assert "cached decode" not in failed  # one token at a time has nothing to look ahead to


def test_ignoring_padding_fails(checkpoint):
    _, failed = failures(checkpoint(), padding=False)
    assert failed == {"left-padded batch", WINDOW}


@pytest.mark.parametrize("keep", [10**6, 21, 19], ids=["ignored", "one too many", "one too few"])
def test_a_wrong_keep_window_fails(checkpoint, keep):
    def spoil(model):
        for layer in model.model.layers:
            layer.self_attn.keep_window_size = keep

    _, failed = failures(checkpoint(), spoil=spoil)
    assert WINDOW in failed
    if keep > 20:
        assert not failed & set(LOGITS)


def test_ignoring_dynamic_ntk_fails(checkpoint):
    def spoil(model):
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}

    verdict, failed = failures(checkpoint(), spoil=spoil)
    assert failed == {TRAINED}
    assert "first diverging layer: 0 (keys" in note(verdict, TRAINED)
    assert "RoPE" in note(verdict, TRAINED)


def test_frequencies_left_over_from_an_earlier_run_fail(checkpoint):
    _, failed = failures(checkpoint(), stale_rotary=True)
    assert failed == {TRAINED}


def test_positions_that_restart_with_every_piece_fail(checkpoint):
    _, failed = failures(checkpoint(), restart_positions=True)
    assert "one-shot prefill" not in failed
    assert {"chunked prefill", "cached decode", "left-padded batch", WINDOW, TRAINED, GREEDY} <= failed


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("model.embed_tokens.weight", "first diverging layer: 0 (keys by"),
        ("model.layers.1.self_attn.k_proj.bias", "first diverging layer: 1 (keys by"),
        ("model.layers.0.self_attn.o_proj.weight", "first diverging layer: 1 (keys by"),
        ("model.layers.1.self_attn.dt_proj.weight", "first diverging layer: 2 (keys by"),
        ("model.layers.1.mlp.down_proj.weight", "first diverging layer: 2 (keys by"),
        ("model.layers.2.mlp.gate_proj.weight", "agree in every layer"),
        ("lm_head.weight", "agree in every layer"),
    ],
)
def test_drill_down_finds_the_layer_of_a_perturbed_weight(checkpoint, weight, expected):
    def spoil(model):
        parameter = model.get_parameter(weight)
        parameter.add_(0.01 * parameter.std() * torch.randn(parameter.shape, generator=torch.manual_seed(0)))

    verdict, failed = failures(checkpoint(attention_bias=True), spoil=spoil)
    assert failed == EVERY
    assert expected in note(verdict, "one-shot prefill")


def test_not_a_number_fails(checkpoint):
    def spoil(model):
        model.model.layers[1].mlp.down_proj.weight[5, 5] = float("nan")

    verdict, failed = failures(checkpoint(), spoil=spoil)
    assert failed == EVERY
    assert "first diverging layer: 2 (keys not finite and values not finite)" in note(verdict, "one-shot prefill")
    assert "not finite" in verdict.summary_line()


def test_a_wrong_token_in_generate_fails_only_there(checkpoint):
    verdict, failed = failures(checkpoint(), answer=lambda ids: [*ids[:3], (ids[3] + 1) % 320, *ids[4:]])
    assert failed == {GREEDY}
    assert "token 3 is" in note(verdict, GREEDY) and "better in the reference" in note(verdict, GREEDY)


def test_an_answer_that_stops_early_fails(checkpoint):
    verdict, failed = failures(checkpoint(), answer=lambda ids: ids[:-1])
    assert failed == {GREEDY}
    assert "31 tokens generated, transformers generates 32" in note(verdict, GREEDY)


def test_reference_routing_in_a_graph_declared_per_token_fails(checkpoint):
    subject = ModelSession(checkpoint(**SMALL_MOE), max_length=20, cdmoe_routing="reference")
    subject.manifest = dataclasses.replace(subject.manifest, cdmoe_routing="per-token")
    failed = outcome(validate("folder", session=subject))["failed"]
    assert {"one-shot prefill", "left-padded batch"} <= failed
    assert "cached decode" not in failed  # the two agree where one token is routed alone


def test_per_token_routing_in_a_graph_declared_reference_fails(checkpoint):
    subject = ModelSession(checkpoint(**SMALL_MOE), max_length=20, cdmoe_routing="per-token")
    subject.manifest = dataclasses.replace(subject.manifest, cdmoe_routing="reference")
    assert {"one-shot prefill", "left-padded batch"} <= outcome(validate("folder", session=subject))["failed"]


def test_logits_of_another_shape_fail(checkpoint):
    class Short(TorchSession):
        def logits(self, *args, **kwargs):
            return super().logits(*args, **kwargs)[..., :-1]

    verdict = validate("folder", session=Short(checkpoint(), max_length=MAX_LENGTH))
    assert outcome(verdict)["failed"] == EVERY
    assert "expected [1, 20, 320]" in note(verdict, "one-shot prefill")


def test_what_the_length_cannot_reach_is_recorded_as_not_run(checkpoint):
    verdict = validate("folder", session=ModelSession(checkpoint(), max_length=20))
    assert verdict.passed
    assert outcome(verdict)["not run"] == {WINDOW, TRAINED}
    assert "max_length 20 does not exceed keep_window_size 20" in note(verdict, WINDOW)
    assert "2 not run" in verdict.summary_line()


def test_scores_that_all_tie_are_reported_and_not_failed(checkpoint):
    def silence(model):
        model.model.layers[1].self_attn.A[0] = 0.0

    folder = checkpoint(seed=5, **SMALL)
    TorchSession(folder, max_length=MAX_LENGTH, spoil=silence).model.save_pretrained(folder)
    verdict = validate("folder", session=ModelSession(folder, max_length=MAX_LENGTH))
    assert verdict.passed
    assert outcome(verdict)["not run"] == {WINDOW, TRAINED}
    assert "some A is 0" in note(verdict, WINDOW)
    assert next(check for check in verdict.checks if check.name == WINDOW).metrics["positions"] > 0


def test_within_the_window_a_model_whose_scores_tie_can_still_fail(checkpoint):
    def silence(model):
        for layer in model.model.layers:
            layer.self_attn.A.zero_()

    folder = checkpoint(seed=6, **SMALL)
    TorchSession(folder, max_length=MAX_LENGTH, spoil=silence).model.save_pretrained(folder)
    _, failed = failures(folder, causal=False)
    assert WINDOW in failed


@pytest.mark.parametrize("max_length", [1, 2, 3, 21, 49])
def test_any_length_can_be_validated(checkpoint, max_length):
    verdict = validate("folder", session=ModelSession(checkpoint(), max_length=max_length))
    assert not outcome(verdict)["failed"]


def test_the_checkpoint_is_the_one_of_the_manifest_unless_given(checkpoint, tmp_path):
    folder = checkpoint()
    session = ModelSession(folder, max_length=20)
    session.manifest = minimal_manifest(str(tmp_path / "gone"))
    with pytest.raises(DogeExportError, match="pass --model") as raised:
        validate("folder", session=session, offline=True)
    assert "\n" not in str(raised.value)
    verdict = validate("folder", model=str(folder), session=session)
    assert verdict.passed and verdict.reference["model"] == str(folder)


def test_a_checkpoint_that_could_not_be_exported_judges_nothing(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(DogeExportError, match="model_type"):
        validate("folder", model=str(tmp_path), session=ModelSession(checkpoint(), max_length=20))


def test_a_failure_against_another_checkpoint_says_so(checkpoint):
    session = ModelSession(checkpoint(), max_length=20)
    source = SourceEntry(str(checkpoint()), None, {"model.safetensors": Fingerprint("0" * 64, 1)})
    session.manifest = dataclasses.replace(session.manifest, source=source)
    verdict = validate("folder", model=str(checkpoint(seed=1)), session=session)
    assert not verdict.passed
    assert "not the files the folder was exported from: model.safetensors" in verdict.render_text()


def test_verdict_is_deterministic_and_says_what_was_compared_with_what(checkpoint, monkeypatch, load_oracle_anew):
    monkeypatch.setattr(references, "load_oracle", load_oracle_anew)  # the reference is deterministic too
    first, second = (validate("f", session=TorchSession(checkpoint(), max_length=30)) for _ in range(2))
    assert first.to_dict() | {"seconds": 0} == second.to_dict() | {"seconds": 0}
    assert first.reference["library"] == "transformers" and first.reference["attention"] == "eager"
    assert first.subject["files"] == {"onnx/model.onnx": "0" * 64}
    assert {"comparison"} == {f.name for f in dataclasses.fields(first.checks[0])} - first.checks[0].to_dict().keys()


def test_progress_names_every_check_before_it_runs(checkpoint):
    calls = []
    validate("f", session=TorchSession(checkpoint(), max_length=20), on_progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(8))
    assert {name for _, _, name in calls} == EVERY | {""}
    assert {total for _, total, _ in calls} == {7}
