"""Checkpoints as training tools save them: other names, surplus tensors, shared weights, float64."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_files import save_checkpoint
from safetensors.torch import load_file, save_file, save_model

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.saved_forms import unwrapped
from doge_export.errors import DogeExportError
from doge_export.validation.transformers_oracle import load_transformers


def same(folder, other):
    one, two = open_checkpoint(folder), open_checkpoint(other)
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    return one


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("base_model.model.norm.weight", "norm.weight"),
        ("_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._orig_mod.A", "model.layers.0.A"),
        ("model.layers.0._checkpoint_wrapped_module.A", "model.layers.0.A"),
        ("pretrained_model.lm_head.weight", "lm_head.weight"),
        ("model.submodule.weight", "model.submodule.weight"),
        ("model.module.weight", "model.module.weight"),
    ],
)
def test_parts_of_wrappers_are_stripped(name, plain):
    assert unwrapped(name) == plain


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_a_prefix_of_every_tensor_is_stripped_and_told(prefix, dense, edit_tensors):
    def rename(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    checkpoint = same(edit_tensors(rename), dense)
    assert any("wrapper of the training" in note for note in checkpoint.notes)
    load_transformers(checkpoint)  # which does not read these names by itself


def test_surplus_tensors_are_left_out_and_told(dense, edit_tensors):
    def add(tensors):
        for index in range(2):
            tensors[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["model.rotary_emb.original_inv_freq"] = torch.ones(8)
        tensors["model.position_ids"] = torch.arange(4)
        tensors |= {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.ones(1)}

    checkpoint = same(edit_tensors(add), dense)
    assert any("model.layers.0.self_attn.rotary_emb.inv_freq and 5 more left out" in n for n in checkpoint.notes)
    load_transformers(checkpoint)


def test_float64_is_read_as_float32(dense, edit_tensors):
    def widen(tensors):
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    checkpoint = same(edit_tensors(widen), dense)
    assert any("float64 rounded to float32" in note for note in checkpoint.notes)
    load_transformers(checkpoint)


@pytest.mark.parametrize(("metadata", "stated"), [(True, True), (True, False), (False, True)])
def test_save_model_keeps_one_of_two_tied_tensors(metadata, stated, tmp_path):
    from transformers import DogeForCausalLM

    tied = save_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    folder = save_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    save_model(DogeForCausalLM.from_pretrained(folder), folder / "model.safetensors", {"format": "pt"})
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" in tensors and "model.embed_tokens.weight" not in tensors
    if not metadata:
        save_file(tensors, folder / "model.safetensors")
    if not stated:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        checkpoint = open_checkpoint(folder)
        assert torch.equal(checkpoint.tensors["lm_head.weight"], checkpoint.tensors["model.embed_tokens.weight"])
    else:
        checkpoint = same(folder, tied)
    load_transformers(checkpoint)
    assert open_checkpoint(folder).notes[0] == "model.embed_tokens.weight is lm_head.weight, which was saved for both"


def test_a_missing_embedding_of_an_untied_model_is_refused(edit_tensors):
    with pytest.raises(DogeExportError, match=r"1 missing \(model.embed_tokens.weight\)"):
        open_checkpoint(edit_tensors(lambda tensors: tensors.pop("model.embed_tokens.weight")))


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "an adapter that is not merged"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "an adapter that is not merged"),
        ("module.model.norm.weight", "one and the same"),
    ],
)
def test_what_cannot_be_one_model_is_refused(added, message, edit_tensors):
    with pytest.raises(DogeExportError, match=message):
        open_checkpoint(edit_tensors(lambda tensors: tensors.update({added: torch.ones(64)})))
