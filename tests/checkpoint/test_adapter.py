"""LoRA adapters: the merge against peft and transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from random_doge import MOE, random_model
from safetensors.torch import load_file, save_file

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError

LIMIT = 1e-5
"""Largest difference of a weight or logit, in standard deviations."""


def adapted(folder, changes: dict[str, Any], lora: dict[str, Any], kind: Any = None):
    """Save a random model and a random adapter of it by peft; return the adapted model."""
    peft = pytest.importorskip("peft")
    model = random_model(num_hidden_layers=2, **changes, **({"kind": kind} if kind else {}))
    model.save_pretrained(folder / "base")
    adapter = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | lora)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter.save_pretrained(folder / "adapter")
    return adapter


CASES = {
    "plain": ({}, {"target_modules": ["q_proj", "down_proj"]}),
    "patterns": (
        {},
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "fan_in_fan_out": True,
            "rank_pattern": {"k_proj": 6, "layers.1.self_attn.q_proj": 3},
            "alpha_pattern": {r"layers.\d+.*up_proj": 16, "^model.layers.0.self_attn.o_proj": 2},
        },
    ),
    "bias and whole modules": (
        {"attention_bias": True},
        {"target_modules": ["q_proj", "embed_tokens"], "bias": "lora_only", "modules_to_save": ["lm_head"]},
    ),
    "every bias": ({"attention_bias": True}, {"target_modules": ["q_proj"], "bias": "all", "layers_to_transform": [1]}),
    "bias of B": ({"attention_bias": True}, {"target_modules": ["q_proj"], "lora_bias": True}),
    "tied embedding": ({"tie_word_embeddings": True}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied head": ({"tie_word_embeddings": True}, {"target_modules": ["lm_head"]}),
    "experts": (MOE, {"target_modules": ["router_gate", "down_embed", "up_embed"]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_merge_equals_peft_and_transformers(case, tmp_path):
    from doge_export.validation.transformers_oracle import load_transformers

    changes, lora = CASES[case]
    model = adapted(tmp_path, changes, lora)
    checkpoint = open_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter")
    ids = torch.randint(0, 320, (1, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(ids).logits
        logits = load_transformers(checkpoint, attn_implementation="eager")(ids).logits
    assert (logits - expected).abs().max() <= LIMIT * expected.std()
    if not changes.get("tie_word_embeddings"):  # peft merges both ends of a tied weight, its adapted model one
        for name, weight in model.merge_and_unload().state_dict().items():
            assert (checkpoint.tensors[name] - weight).abs().max() <= LIMIT * weight.std(), name
    assert any("LoRA adapter" in note for note in checkpoint.notes)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_a_classifier_makes_a_classifier_of_a_language_model(tmp_path):
    from transformers import DogeForSequenceClassification

    lora = {"target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    model = adapted(tmp_path, {}, lora, kind=DogeForSequenceClassification)
    random_model(num_hidden_layers=2).save_pretrained(tmp_path / "language")
    checkpoint = open_checkpoint(tmp_path / "language", adapter=tmp_path / "adapter")
    assert checkpoint.architecture.task == "text-classification"
    head = model.merge_and_unload().score.weight
    assert torch.equal(checkpoint.tensors["score.weight"], head)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A checkpoint, and an adapter of its query weights written without peft; read only."""
    folder = tmp_path_factory.mktemp("pair")
    random_model(num_hidden_layers=2).save_pretrained(folder / "base")
    (folder / "adapter").mkdir()
    torch.manual_seed(3)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors = {f"{prefix}lora_A.weight": torch.randn(4, 64), f"{prefix}lora_B.weight": torch.randn(64, 4)}
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "../base"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


NAME = "model.layers.0.self_attn.q_proj.weight"


def expected(pair):
    a, b = load_file(pair / "adapter" / "adapter_model.safetensors").values()
    return load_file(pair / "base" / "model.safetensors")[NAME] + 2 * (b @ a)


def beside(pair, tmp_path):
    """A copy of the checkpoint with the adapter in its folder."""
    folder = shutil.copytree(pair / "base", tmp_path / "both")
    return shutil.copytree(pair / "adapter", folder, dirs_exist_ok=True)


def test_an_adapter_beside_the_weights_is_merged_unless_told_not_to(pair, tmp_path):
    folder = beside(pair, tmp_path)
    checkpoint = open_checkpoint(folder)
    assert torch.allclose(checkpoint.tensors[NAME], expected(pair), atol=1e-5)
    assert not checkpoint.as_stored  # transformers would merge it by itself where peft is installed
    plain = open_checkpoint(folder, adapter="none")
    assert torch.equal(plain.tensors[NAME], open_checkpoint(pair / "base").tensors[NAME])
    assert plain.adapter is None and not plain.as_stored


def test_an_adapter_alone_is_merged_into_the_model_that_it_names(pair):
    checkpoint = open_checkpoint(pair / "adapter")
    assert torch.allclose(checkpoint.tensors[NAME], expected(pair), atol=1e-5)
    assert checkpoint.source.folder.resolve() == pair / "base"
    assert checkpoint.adapter.source.folder == pair / "adapter"


@pytest.mark.parametrize("base", [None, "/nowhere/at/all", 3])
def test_an_adapter_alone_without_its_model_says_how(base, pair, tmp_path):
    folder = shutil.copytree(pair / "adapter", tmp_path / "adapter")
    rewrite(folder, base_model_name_or_path=base)
    with pytest.raises(DogeExportError, match="name the base model, and the adapter with --adapter"):
        open_checkpoint(folder)


def rewrite(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"DoRA \(use_dora\)"),
        ({"peft_type": "IA3"}, 'peft_type is "IA3"'),
        ({"peft_type": None}, "peft_type is null"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.down_embed"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"of_next_year": 1}, "of_next_year"),
        ({"bias": "some"}, "bias"),
        ({"r": 0}, "r is 0"),
        ({"r": 5}, r"expected \[64, 5\] and \[5, 64\]"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 3}}, r"expected \[64, 3\]"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"(a+)+": 3}}, "too intricate"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern"),
    ],
)
def test_what_is_not_merged_is_refused_by_name(changes, message, pair, tmp_path):
    folder = shutil.copytree(pair / "adapter", tmp_path / "adapter")
    rewrite(folder, **changes)
    with pytest.raises(DogeExportError, match=message):
        open_checkpoint(pair / "base", adapter=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(next(iter(t))), "expected lora_A and lora_B"),
        (lambda t: t.update({"base_model.model.other.lora_A.weight": torch.ones(1)}), "other"),
        (lambda t: t.update({"base_model.model.other.weight": torch.ones(1)}), "no tensor"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(321, 64)}), "resize the checkpoint"),
        (lambda t: t.update({next(iter(t)): torch.full((4, 64), float("nan"))}), "NaN"),
        (lambda t: t.update({next(iter(t)): torch.ones(4, 64, dtype=torch.int8)}), "dtype I8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, pair, tmp_path):
    folder = shutil.copytree(pair / "adapter", tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(DogeExportError, match=message):
        open_checkpoint(pair / "base", adapter=folder)


def test_an_adapter_that_is_not_whole_is_refused(pair, tmp_path):
    folder = beside(pair, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(DogeExportError, match=r"no adapter_model.safetensors.*--adapter none"):
        open_checkpoint(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(DogeExportError, match="only pickled weights"):
        open_checkpoint(folder)
    with pytest.raises(DogeExportError, match="no such folder"):
        open_checkpoint(pair / "base", adapter=tmp_path / "missing")
    with pytest.raises(DogeExportError, match="not an adapter"):
        open_checkpoint(pair / "base", adapter=pair / "base")


def test_an_export_tells_its_adapter_and_validates_with_it(pair, tmp_path):
    from doge_export import export
    from doge_export.package.manifest import read_manifest
    from doge_export.validation.validator import open_recorded

    result = export(pair / "adapter", tmp_path / "out", validate=False, max_length=16)
    entry = read_manifest(tmp_path / "out").source.adapter
    assert entry == result.manifest.source.adapter
    assert entry.model == str(pair / "adapter") and entry.files.keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert result.manifest.source.model == str(pair / "base")
    assert "with the LoRA adapter `adapter`, a local folder" in (tmp_path / "out" / "README.md").read_text()
    reopened = open_recorded(result.manifest)
    assert torch.allclose(reopened.tensors[NAME], expected(pair), atol=1e-5)
    without = export(beside(pair, tmp_path), tmp_path / "without", adapter="none", validate=False, max_length=16)
    assert open_recorded(without.manifest).adapter is None  # though the adapter lies beside the weights
