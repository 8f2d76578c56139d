"""Today's layout of an older checkpoint: transformers loads it whole and computes the same, or nothing is written."""

from __future__ import annotations

import json
import re

import pytest
import torch
from older_doge import LABELS, config_of, older_doge
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DogeModel

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.identify import Assumptions
from doge_export.errors import DogeExportError
from doge_export.model import MODULES
from doge_export.pipeline.convert import convert

IDS = torch.from_numpy(
    torch.randperm(160, generator=torch.Generator().manual_seed(3))[:80].view(2, 40).numpy()
)  # no token twice, so no equal scores
CLASSES = {
    "text-generation": AutoModelForCausalLM,
    "feature-extraction": DogeModel,
    "text-classification": AutoModelForSequenceClassification,
}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}


def same_in_each_group(tensors):
    for name in tensors:
        if name.endswith(".A") or ".dt_proj." in name:
            tensors[name] = (
                tensors[name].unflatten(0, (2, 2))[:, :1].expand(-1, 2, *tensors[name].shape[1:]).flatten(0, 1)
            )
            tensors[name] = tensors[name].contiguous()


def of_modules(tensors):
    for name in [name for name in tensors if name.endswith("_residual")]:
        tensors[f"{name}.weight"] = tensors.pop(name)


CONVERTED = {
    "G7": ("G7", {}),
    "G7 untied": ("G7", {"tie_word_embeddings": False}),
    "G7 biases": ("G7", {"attention_bias": True, "mlp_bias": True}),
    "G7 linear": ("G7", LINEAR),
    "G7 yarn": ("G7", YARN),
    "G7 experts": ("G7", {"cdmoe": "M7"}),
    "G7 residuals as modules": ("G7", {"edit": of_modules}),
    "G7 without groups": ("G7", {"num_key_value_heads": 4}),
    "G7 bare": ("G7", {"head": None}),
    "G7 classifier": ("G7", {"head": "score"}),
    "G6b": ("G6b", {}),
    "G6b experts": ("G6b", {"cdmoe": "M7"}),
    "G6b with an unread ratio": ("G6b", {"dynamic_mask_ratio": 0.3}),
    "G6b bare": ("G6b", {"head": None}),
    "G6b classifier": ("G6b", {"head": "score"}),
    "G6a alike in groups": ("G6a", {"edit": same_in_each_group}),
    "G6a alike in groups, biases": ("G6a", {"edit": same_in_each_group, "attention_bias": True}),
    "G6a experts": ("G6a", {"edit": same_in_each_group, "cdmoe": "M7"}),
    "G6a classifier": ("G6a", {"edit": same_in_each_group, "head": "score"}),
}


def answers(folder, assumed=Assumptions()):  # noqa: B008 - a value
    """Our module on what a folder holds."""
    checkpoint = open_checkpoint(folder, assumed=assumed)
    architecture = checkpoint.architecture
    module = MODULES[architecture.task].from_tensors(architecture, checkpoint.tensors)
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        if architecture.task == "text-generation":
            return module(IDS, mask, torch.arange(IDS.shape[1]).expand(2, -1))[0]
        return module(IDS, mask)


def answers_of_transformers(folder, task, dtype=torch.float32):
    """And transformers on it; nothing may be missing, left over or made up."""
    model, loading = CLASSES[task].from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype=dtype
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    with torch.no_grad():
        output = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    return output.last_hidden_state if task == "feature-extraction" else output.logits


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * expected.square().mean().sqrt() + 2e-5


@pytest.mark.parametrize(("generation", "options"), CONVERTED.values(), ids=CONVERTED)
def test_transformers_computes_what_the_original_does(tmp_path, generation, options):
    original = older_doge(tmp_path / "original", generation, **options)
    result = convert(original, tmp_path / "out")
    assert (result.folder, result.generation, result.dtype) == (tmp_path / "out", generation, "float32")
    expected = answers(original)
    assert_close(answers_of_transformers(result.folder, result.task), expected)
    assert_close(answers(result.folder), expected)  # dt_proj of fewer rows rounds otherwise
    assert open_checkpoint(result.folder).identity.generation == "G7"


def test_selection_happens_in_the_test_above(tmp_path):
    """40 tokens are more than keep_window_size, and those left out matter."""
    original = older_doge(tmp_path, "G7")
    assert config_of(original)["keep_window_size"] < IDS.shape[1]
    selected = answers(original)
    config = config_of(original) | {"keep_window_size": 48}
    (original / "config.json").write_text(json.dumps(config))
    assert (answers(original) - selected).abs().max() > 1e-2


def test_the_second_doge_without_groups_keeps_every_key(tmp_path):
    original = older_doge(tmp_path / "original", "G6a", num_key_value_heads=4)
    result = convert(original, tmp_path / "out", assumed=Assumptions(generation="G6a"))
    config = config_of(result.folder)
    assert config["keep_window_size"] >= config["max_position_embeddings"]
    expected = answers(original, Assumptions(generation="G6a"))
    assert_close(answers_of_transformers(result.folder, result.task), expected)
    assert (expected - answers(original, Assumptions(generation="G6b"))).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("generation", ["G6a", "G7"])
def test_the_stored_dtype_stays(tmp_path, dtype, generation):
    edit = same_in_each_group if generation == "G6a" else None
    original = older_doge(tmp_path / "original", generation, dtype=dtype, edit=edit)
    result = convert(original, tmp_path / "out")
    assert result.dtype == config_of(result.folder)["dtype"] == str(dtype).removeprefix("torch.")
    tensors = load_file(result.folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    if generation == "G7":
        before = load_file(original / "model.safetensors")
        assert tensors.keys() == before.keys()
        assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def norms_of_float32(tensors):
    for name in tensors:
        if "norm" not in name:
            tensors[name] = tensors[name].bfloat16()


def test_dtypes_that_are_mixed(tmp_path):
    """Loaded as config.json says, no tensor is rounded."""
    original = older_doge(tmp_path / "original", "G7", edit=norms_of_float32)
    result = convert(original, tmp_path / "out")
    stored = load_file(result.folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32, torch.bfloat16}
    assert sum(tensor.dtype == torch.bfloat16 for tensor in stored.values()) > len(stored) / 2
    assert result.dtype == config_of(result.folder)["dtype"] == "float32"
    assert_close(answers_of_transformers(result.folder, result.task, dtype="auto"), answers(original))


def test_halves_of_two_kinds(tmp_path):
    def edit(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()

    original = older_doge(tmp_path / "original", "G7", dtype=torch.float16, edit=edit)
    assert convert(original, tmp_path / "out").dtype == "float32"


def test_a_padding_id_outside_the_vocabulary(tmp_path):
    """It means nothing, and transformers builds no embedding with it."""
    original = older_doge(tmp_path / "original", "G7", says={"pad_token_id": 999})
    result = convert(original, tmp_path / "out")
    assert config_of(result.folder)["pad_token_id"] is None
    assert_close(answers_of_transformers(result.folder, result.task), answers(original))


def test_config(tmp_path):
    says = {"auto_map": {"AutoConfig": "x.Y"}, "my_note": "kept", "bos_token_id": 7}
    original = older_doge(tmp_path / "original", "G6b", says=says, **YARN)
    config = config_of(convert(original, tmp_path / "out").folder)
    assert config["model_type"] == "doge"
    assert config["architectures"] == ["DogeForCausalLM"]
    assert config["rope_parameters"] == YARN["rope_scaling"] | {"rope_theta": 100000.0}
    assert config["pad_token_id"] == config_of(original)["pad_token_id"]
    assert (config["my_note"], config["bos_token_id"], config["keep_window_size"]) == ("kept", 7, 20)
    assert not {"auto_map", "torch_dtype", "rope_scaling", "rope_theta", "dynamic_mask_ratio"} & config.keys()


def test_labels_without_names(tmp_path):
    original = older_doge(tmp_path / "original", "G7", head="score", says={"id2label": ..., "label2id": ...})
    result = convert(original, tmp_path / "out")
    assert config_of(result.folder)["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert answers_of_transformers(result.folder, result.task).shape == (2, len(LABELS))


def test_companions_are_copied(tmp_path):
    original = older_doge(tmp_path / "original", "G7")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (original / name).write_text('{"a": 1}')
    (original / "modeling_doge.py").write_text("raise SystemExit")
    out = convert(original, tmp_path / "out").folder
    assert sorted(file.name for file in out.iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert (out / "tokenizer.json").read_text() == '{"a": 1}'


def test_hidden_states_of_a_language_model(tmp_path):
    original = older_doge(tmp_path / "original", "G6b")
    result = convert(original, tmp_path / "out", assumed=Assumptions(task="feature-extraction"))
    assert result.task == "feature-extraction"
    expected = answers(original, Assumptions(task="feature-extraction"))
    assert_close(answers_of_transformers(result.folder, result.task), expected)


def negative(tensors):
    for name in tensors:
        if name.endswith(".A"):
            tensors[name][0] = -1.0


TABLE, KEYS, NORM = "read from a table", "keys are not rotated", "no norm on queries and keys"
HEADS = "scores are 4, one for each query head, and differ within a group"
REFUSED = {
    "G1": ("G1", {}, [TABLE, KEYS, NORM, "no gate", r"product keys \(M0\)"]),
    "G2": ("G2", {}, [KEYS, NORM]),
    "G3a": ("G3a", {}, [NORM]),
    "G3b that hides": ("G3b", {"edit": negative}, [NORM, "hide keys"]),
    "G4b": ("G4b", {}, [NORM, HEADS]),
    "G4b without groups": ("G4b", {"num_key_value_heads": 4}, [NORM]),
    "G4b ratio": ("G4b", {"dynamic_mask_ratio": 0.3}, [NORM, HEADS, "a share of all keys"]),
    "G4b M1": ("G4b", {"cdmoe": "M1"}, [NORM, HEADS, r"product keys \(M1\)"]),
    "G4b M4": ("G4b", {"cdmoe": "M4"}, [NORM, HEADS, r"product keys \(M4\)"]),
    "G4b M6": ("G4b", {"cdmoe": "M6-bias"}, [NORM, HEADS, r"named by ranks \(M6\)", "router has a bias"]),
    "G5": ("G5", {}, [NORM, HEADS]),
    "G5 without groups": ("G5", {"num_key_value_heads": 4}, [NORM]),
    "G6a": ("G6a", {}, [HEADS]),
    "G6a ratio": ("G6a", {"edit": same_in_each_group, "dynamic_mask_ratio": 0.3}, ["a share of all keys"]),
    "G8": ("G8", {}, ["not as exponentials"]),
    "G8 experts": ("G8", {"cdmoe": "M7"}, ["not as exponentials", "M7-fixed"]),
}


@pytest.mark.parametrize(("generation", "options", "reasons"), REFUSED.values(), ids=REFUSED)
def test_what_transformers_cannot_express(tmp_path, generation, options, reasons):
    original = older_doge(tmp_path / "original", generation, **options)
    with pytest.raises(DogeExportError) as caught:
        convert(original, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"{str(original)!r} is of generation {generation}, which transformers' Doge cannot express: "
    )
    told = message.split("express: ")[1].split(". Export it instead")[0].split("; ")
    assert len(told) == len(reasons), told
    assert all(re.search(reason, line) for reason, line in zip(reasons, told, strict=True)), told
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_one_differing_bias_in_a_group_is_enough(tmp_path):
    def edit(tensors):
        same_in_each_group(tensors)
        tensors["model.layers.1.self_attn.dt_proj.bias"][3] += 0.1

    original = older_doge(tmp_path / "original", "G6a", edit=edit, attention_bias=True)
    with pytest.raises(DogeExportError, match="differ within a group"):
        convert(original, tmp_path / "out")


def test_the_original_survives(tmp_path):
    original = older_doge(tmp_path / "original", "G7")
    for out in (original, tmp_path):
        with pytest.raises(DogeExportError, match="which is being read"):
            convert(original, out, force=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(DogeExportError, match="is not empty"):
        convert(original, tmp_path / "full")
    with pytest.raises(DogeExportError, match="which doge-export did not write"):
        convert(original, tmp_path / "full", force=True)
    (tmp_path / "full" / "notes").unlink()
    for _ in range(2):  # of what convert wrote, the second replaces the first
        assert convert(original, tmp_path / "full", force=True).tensors == 32
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(DogeExportError, match="holds notes, which doge-export did not write"):
        convert(original, tmp_path / "full", force=True)


def test_weights_trained_from_a_conversion_survive(tmp_path):
    """transformers keeps what it does not know in a config, so a trained model carries the mark of the conversion."""
    original, trained = older_doge(tmp_path / "original", "G7"), tmp_path / "trained"
    convert(original, trained)
    tensors = load_file(trained / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, trained / "model.safetensors")
    with pytest.raises(DogeExportError, match="which doge-export did not write"):
        convert(original, trained, force=True)


def test_the_base_of_an_adapter_survives(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    convert(older_doge(tmp_path / "original", "G7"), base)
    adapter.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    rows, columns = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].shape
    halves = {f"{module}.lora_A.weight": torch.ones(2, columns), f"{module}.lora_B.weight": torch.ones(rows, 2)}
    save_file(halves, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    before = (base / "model.safetensors").read_bytes()
    with pytest.raises(DogeExportError, match="which is being read"):
        convert(adapter, base, force=True)
    assert (base / "model.safetensors").read_bytes() == before
