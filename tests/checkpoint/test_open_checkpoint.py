"""open_checkpoint on sound checkpoints: every tensor arrives, in float32, under its canonical name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import SIZES, save_checkpoint
from safetensors.torch import load_file

from doge_export.checkpoint import Moe, open_checkpoint
from doge_export.checkpoint.naming import expected_tensors
from doge_export.errors import DogeExportError


def oracle(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters that transformers itself reads from a folder."""
    from transformers import DogeForCausalLM

    return dict(DogeForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


VARIANTS = {
    "dense": {},
    "tied": {"tie_word_embeddings": True},
    "moe": {"is_moe": True, "num_experts": 19, "num_experts_per_tok": 5, "norm_topk_prob": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biased moe": {"mlp_bias": True, "is_moe": True, "num_experts": 16, "num_experts_per_tok": 16},
    "one kv head": {"num_key_value_heads": 1},
    "all kv heads": {"num_key_value_heads": None},
    "explicit head_dim": {"head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1},
    "half": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "sharded": {"shard": "40KB"},
    "sharded tied bfloat16": {"shard": "20KB", "dtype": torch.bfloat16, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_tensor_is_what_transformers_reads(tmp_path, options):
    folder = save_checkpoint(tmp_path, **options)
    checkpoint = open_checkpoint(str(folder))
    expected = oracle(folder)
    assert checkpoint.tensors.keys() == expected.keys() == expected_tensors(checkpoint.architecture).keys()
    assert len(checkpoint.tensors) == len(expected)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name
        assert checkpoint.tensors.shape(name) == tuple(tensor.shape)


def test_the_sharded_variant_really_has_several_files(tmp_path):
    checkpoint = open_checkpoint(save_checkpoint(tmp_path, shard="40KB"))
    assert len(checkpoint.tensors.files) > 2
    assert checkpoint.tensors.files == sorted(tmp_path.glob("model-*.safetensors"))


def test_architecture_and_files(dense):
    (dense / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(dense)
    architecture = checkpoint.architecture
    assert {key: getattr(architecture, key) for key in SIZES if key != "pad_token_id"} == {
        key: value for key, value in SIZES.items() if key != "pad_token_id"
    }
    assert (architecture.head_dim, architecture.moe, architecture.tie_word_embeddings) == (16, None, False)
    assert checkpoint.source.name == str(dense)
    assert (checkpoint.source.folder, checkpoint.source.revision) == (dense, None)
    assert checkpoint.config == json.loads((dense / "config.json").read_text())
    assert checkpoint.generation_config == json.loads((dense / "generation_config.json").read_text())
    assert checkpoint.tokenizer_files == [dense / "tokenizer.json", dense / "generation_config.json"]
    assert checkpoint.tensors.files == [dense / "model.safetensors"]
    (dense / "tokenizer.json").unlink()


def test_moe_architecture(tmp_path):
    folder = save_checkpoint(tmp_path, is_moe=True, num_experts=19, num_experts_per_tok=16)
    moe = open_checkpoint(folder).architecture.moe
    assert moe == Moe(19, 16)
    assert moe.num_keys == 4


def test_a_tied_head_stored_as_an_equal_copy_is_dropped(tmp_path):
    from safetensors.torch import save_file

    folder = save_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert "lm_head.weight" not in open_checkpoint(folder).tensors


def test_one_file_goes_before_an_index(tmp_path):
    """As in transformers: a stale index beside model.safetensors is not looked at."""
    folder = save_checkpoint(tmp_path)
    (folder / "model.safetensors.index.json").write_text("not even JSON")
    assert open_checkpoint(folder).tensors.files == [folder / "model.safetensors"]


def test_reading_keeps_no_tensor_and_writing_to_one_leaves_the_file_alone(copy):
    tensors = open_checkpoint(copy).tensors
    before = (copy / "model.safetensors").read_bytes()
    tensors["model.norm.weight"].zero_()
    assert (copy / "model.safetensors").read_bytes() == before
    assert tensors["model.norm.weight"].abs().min() > 0


def test_a_missing_generation_config_is_fine(copy):
    (copy / "generation_config.json").unlink()
    checkpoint = open_checkpoint(copy)
    assert checkpoint.generation_config is None
    assert checkpoint.tokenizer_files == []


def test_code_beside_the_weights_is_never_run(edit_config, tmp_path):
    witness = tmp_path / "witness"
    folder = edit_config(
        auto_map={"AutoConfig": "configuration_doge.DogeConfig", "AutoModelForCausalLM": "modeling_doge.Doge"}
    )
    for module in ("configuration_doge.py", "modeling_doge.py"):
        (folder / module).write_text(f"import pathlib; pathlib.Path({str(witness)!r}).touch()")
    open_checkpoint(folder)
    assert not witness.exists()


def test_trust_remote_code_is_refused_with_the_reason(dense):
    with pytest.raises(DogeExportError, match=r"--trust-remote-code is never needed.*never run"):
        open_checkpoint(dense, trust_remote_code=True)


def test_a_folder_goes_before_a_hub_id_of_the_same_name(dense, tmp_path, monkeypatch):
    shutil.copytree(dense, tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    source = open_checkpoint("owner/model").source
    assert source.name == "owner/model"
    assert source.revision is None


def test_home_is_expanded(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert open_checkpoint(f"~/{copy.name}").source.folder == copy


def test_the_architecture_alone_imports_neither_torch_nor_safetensors():
    code = (
        "import sys; from doge_export.checkpoint import Architecture, Rope;"
        "from doge_export.checkpoint.config import parse_config;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'safetensors', 'huggingface_hub', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
