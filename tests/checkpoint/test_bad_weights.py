"""Damaged, incomplete or foreign weights: one line that names what was seen."""

import json
import re
import shutil
import struct

import pytest
import safetensors.torch
import torch
from checkpoint_files import save_checkpoint
from older_doge import older_doge
from safetensors.torch import load_file, save_file

from doge_export.checkpoint import open_checkpoint
from doge_export.errors import DogeExportError, RunFailed


def refused(folder, pattern=None):
    """The one line that opening the folder ends with."""
    with pytest.raises(DogeExportError, match=pattern) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert not isinstance(caught.value, RunFailed)
    return message


class TestDamagedFile:
    @pytest.mark.parametrize("size", [0, 4, 100, -1, -1000])
    def test_truncated(self, copy, size):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])
        refused(copy, r"model\.safetensors is not a whole safetensors file \(.+\): truncated or damaged")

    def test_bytes_too_many(self, copy):
        with (copy / "model.safetensors").open("ab") as file:
            file.write(b"\0")
        refused(copy, "not a whole safetensors file")

    def test_every_flipped_bit_of_the_header_is_found(self, copy):
        """Of the length, the names, dtypes, shapes and offsets; not of the spaces that pad the header."""
        file = copy / "model.safetensors"
        raw = bytearray(file.read_bytes())
        length = struct.unpack("<Q", raw[:8])[0]
        metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
        start = raw.index(json.dumps(metadata, separators=(",", ":")).encode())
        free_text = range(start, start + len(json.dumps(metadata, separators=(",", ":"))))
        end = 8 + len(raw[8 : 8 + length].rstrip())
        places = [place for place in range(0, end, 13) if place not in free_text]
        assert len(places) > 100
        for place in places:
            flipped = bytearray(raw)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            refused(copy)

    def test_not_safetensors_at_all(self, copy):
        (copy / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(200))
        refused(copy, "not a whole safetensors file")

    def test_git_lfs_pointer(self, copy):
        pointer = "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 1234\n"
        (copy / "model.safetensors").write_text(pointer)
        refused(copy, "Git LFS pointer.*git lfs pull")


class TestValues:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(("value", "seen"), [(float("nan"), "NaN"), (float("inf"), "inf"), (float("-inf"), "-inf")])
    def test_not_finite(self, edit_tensors, dtype, value, seen):
        def change(tensors):
            tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(dtype)
            tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = value

        refused(edit_tensors(change), rf"tensor model\.layers\.1\.mlp\.up_proj\.weight in .* holds {seen}:")

    def test_a_nan_in_any_tensor_is_found(self, copy):
        names = list(load_file(copy / "model.safetensors"))
        for name in names:
            tensors = load_file(copy / "model.safetensors")
            tensors[name].view(-1)[-1] = float("nan")
            bad = copy.with_name("bad")
            shutil.copytree(copy, bad, dirs_exist_ok=True)
            save_file(tensors, bad / "model.safetensors")
            assert f"tensor {name} in" in refused(bad, "holds NaN")

    def test_a_flipped_exponent_bit_is_found(self, copy):
        """The top bit of the exponent makes 0.1 about 1e37: finite, and no weight."""
        file = copy / "model.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 0x40
        file.write_bytes(raw)
        refused(copy, r"holds -?\d\.\d+e\+3\d: ")

    def test_large_but_possible_weights_are_accepted(self, edit_tensors):
        def change(tensors):
            tensors["model.norm.weight"][0] = 1e6

        assert open_checkpoint(edit_tensors(change)).tensors["model.norm.weight"][0] == 1e6

    @pytest.mark.parametrize(
        ("dtype", "seen"), [(torch.int64, "I64"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")]
    )
    def test_other_dtypes(self, edit_tensors, dtype, seen):
        def change(tensors):
            tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)

        message = refused(edit_tensors(change), f"tensor model.norm.weight in .* has dtype {seen}")
        assert "float32, float16, bfloat16" in message


class TestNamesAndShapes:
    def test_missing_and_unexpected_are_both_listed(self, edit_tensors):
        def change(tensors):
            tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")

        refused(
            edit_tensors(change),
            r"1 missing \(model.layers.0.mlp.up_proj.weight\), 1 unexpected \(model.layers.0.mlp.extra.weight\)",
        )

    def test_only_missing(self, edit_tensors):
        refused(
            edit_tensors(lambda tensors: tensors.pop("model.norm.weight")), r"1 missing \(model\.norm\.weight\), 0 un"
        )

    def test_only_unexpected(self, edit_tensors):
        folder = edit_tensors(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
        refused(folder, r"0 missing \(none\), 1 unexpected \(model\.layers\.0\.self_attn\.q_proj\.bias\)")

    def test_long_lists_are_cut_and_counted(self, edit_config):
        message = refused(edit_config(num_hidden_layers=40), r"^the weights do not match config\.json: 570 missing \(")
        assert "and 566 more" in message

    def test_fewer_layers_in_the_config(self, edit_config):
        refused(
            edit_config(num_hidden_layers=1), r"0 missing \(none\), 15 unexpected \(model\.layers\.1\..* and 11 more"
        )

    def test_moe_weights_with_a_dense_config(self, tmp_path):
        folder = save_checkpoint(tmp_path, is_moe=True, num_experts=16, num_experts_per_tok=4)
        config = json.loads((folder / "config.json").read_text()) | {"is_moe": False}
        (folder / "config.json").write_text(json.dumps(config))
        refused(folder, r"is_moe false, but the checkpoint has tensors of a mixture of experts \(down_embed\)")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("model.embed_tokens.weight", [95, 64]),
            ("model.layers.1.self_attn.dt_proj.weight", [2, 64]),
            ("model.layers.0.mlp.down_proj.weight", [80, 64]),
            ("model.layers.0.input_residual", [64, 1]),
            ("model.layers.0.self_attn.q_norm.weight", [64]),
        ],
    )
    def test_wrong_shape(self, edit_tensors, dense, name, shape):
        expected = list(load_file(dense / "model.safetensors")[name].shape)
        folder = edit_tensors(lambda tensors: tensors.update({name: torch.ones(shape)}))
        refused(folder, re.escape(f"tensor {name} has shape {shape}, config.json implies {expected}"))


class TestTiedHead:
    def test_tied_in_the_config_but_another_head_stored(self, edit_config):
        refused(
            edit_config(tie_word_embeddings=True), r"tie_word_embeddings true, but lm_head\.weight differs from model\."
        )

    def test_tied_but_a_head_of_another_shape(self, edit_config, edit_tensors):
        edit_config(tie_word_embeddings=True)
        refused(edit_tensors(lambda tensors: tensors.update({"lm_head.weight": torch.ones(3, 64)})), "differs from")

    def test_untied_without_a_head(self, edit_tensors):
        message = refused(edit_tensors(lambda tensors: tensors.pop("lm_head.weight")), r"^lm_head\.weight is missing")
        assert "the default" not in message

    def test_untied_by_default_without_a_head(self, edit_config, edit_tensors):
        edit_config(tie_word_embeddings=...)
        refused(
            edit_tensors(lambda tensors: tensors.pop("lm_head.weight")), "the default where config.json does not say"
        )


class TestForeignKinds:
    """Names of one generation, the rest of another; see test_generations for those that are whole."""

    @pytest.mark.parametrize(
        ("rename", "seen"),
        [
            (lambda name: None if ".q_norm." in name else name, r"2 unexpected \(model\.layers\.0\.self_attn\.k_norm"),
            (lambda name: name.replace("input_layernorm", "pre_layernorm"), r"has a name of today among"),
            (lambda name: name.replace("input_layernorm", "pre_sequence_layernorm"), r"keep_window_size 2048, .* G3a"),
            (lambda name: name.replace("self_attn.v_proj", "attn.v_embed"), r"keep_window_size 2048, .* of G1 "),
            (lambda name: name.replace("self_attn.A", "attn.dynamic_mask"), r"keep_window_size 2048, .* of G2 "),
            (
                lambda name: name.replace(".mlp.", ".feed_forward."),
                r"6 missing .*6 unexpected .*feed_forward\.down_proj",
            ),
        ],
    )
    def test_names_of_older_generations(self, edit_tensors, rename, seen):
        def change(tensors):
            renamed = {rename(name): tensor for name, tensor in tensors.items()}
            tensors.clear()
            tensors.update({name: tensor for name, tensor in renamed.items() if name})

        refused(edit_tensors(change), seen)

    def test_scores_per_query_head(self, edit_tensors):
        def change(tensors):
            for layer in range(2):
                tensors[f"model.layers.{layer}.self_attn.A"] = torch.ones(4)
                tensors[f"model.layers.{layer}.self_attn.dt_proj.weight"] = torch.ones(4, 32)

        refused(edit_tensors(change), r"model_type \"doge\", but the tensors are of G6a .*--generation G6a")

    def test_one_lost_q_norm_is_a_missing_tensor_not_a_generation(self, edit_tensors):
        folder = edit_tensors(lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight"))
        refused(folder, r"1 missing \(model\.layers\.1\.self_attn\.q_norm\.weight\)")


class TestShards:
    @pytest.fixture
    def sharded(self, tmp_path):
        return save_checkpoint(tmp_path, shard="40KB")

    @staticmethod
    def edit_index(folder, change):
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    def test_missing_shard(self, sharded):
        shard = sorted(sharded.glob("model-*.safetensors"))[1]
        shard.unlink()
        refused(sharded, f"{shard.name} is missing: fetch the checkpoint again")

    def test_damaged_shard(self, sharded):
        shard = sorted(sharded.glob("model-*.safetensors"))[-1]
        shard.write_bytes(shard.read_bytes()[:-5])
        refused(sharded, f"{shard.name} is not a whole safetensors file")

    def test_shard_lacks_what_the_index_promises(self, sharded):
        shard = sorted(sharded.glob("model-*.safetensors"))[0]
        tensors = load_file(shard)
        lost = sorted(tensors)[0]
        tensors.pop(lost)
        save_file(tensors, shard)
        refused(sharded, rf"index\.json promises tensor {re.escape(lost)} in {shard.name}, which lacks it")

    def test_one_tensor_in_two_shards(self, sharded):
        first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
        tensors = load_file(first)
        name = sorted(tensors)[0]
        save_file(load_file(second) | {name: tensors[name]}, second)
        refused(sharded, f"tensor {re.escape(name)} is in both {first.name} and {second.name}")

    def test_tensor_in_a_shard_that_the_index_and_the_model_do_not_know(self, sharded):
        first = sorted(sharded.glob("model-*.safetensors"))[0]
        save_file(load_file(first) | {"stray": torch.ones(2)}, first)
        refused(sharded, r"0 missing \(none\), 1 unexpected \(stray\)")

    @pytest.mark.parametrize("target", ["../{}/{}", "/etc/passwd", "sub/{1}", "..", "", "..\\{1}", 3, None, ["{1}"]])
    def test_index_may_not_leave_its_folder(self, sharded, target):
        def change(weight_map):
            name = next(iter(weight_map))
            seen = target.format(sharded.name, weight_map[name]) if isinstance(target, str) else target
            weight_map[name] = seen

        self.edit_index(sharded, change)
        refused(sharded, "index.json names the file .*, expected a file in the same folder")

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
    def test_broken_index(self, sharded, content):
        (sharded / "model.safetensors.index.json").write_text(content)
        refused(sharded, r"model\.safetensors\.index\.json")


class TestNoWeights:
    def test_empty_weights(self, copy):
        (copy / "model.safetensors").unlink()
        refused(copy, "has neither model.safetensors nor model.safetensors.index.json: no weights")

    def test_other_safetensors(self, copy):
        (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
        refused(copy, r"has neither .* \(seen: adapter_model\.safetensors\)")

    @pytest.mark.parametrize("names", [["pytorch_model.bin"], ["model.pt"], ["consolidated.00.pth", "weights.ckpt"]])
    def test_pickled_weights_only(self, copy, names):
        (copy / "model.safetensors").unlink()
        for name in [*names, "training_args.bin"]:
            (copy / name).write_bytes(b"\x80\x04.")
        message = refused(copy, rf"has only pickled weights \({re.escape(', '.join(names))}\)")
        assert "save_pretrained" not in message  # transformers of today would lose what older generations have

    def test_the_advice_for_pickled_weights_works(self, tmp_path, monkeypatch):
        """Also of an old generation, and with a head that shares the embedding's memory."""
        folder = older_doge(tmp_path, "G4b")
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.word_embed.weight"]
        torch.save(tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        message = refused(folder, "has only pickled weights")
        advice = message[message.index("safetensors.torch.save_file(") :]
        monkeypatch.chdir(folder)
        exec(advice.replace("FILE", "'pytorch_model.bin'"), {"torch": torch, "safetensors": safetensors})
        checkpoint = open_checkpoint(folder)
        assert checkpoint.identity.generation == "G4b"
        assert torch.equal(checkpoint.tensors["model.embed_tokens.weight"], tensors["model.word_embed.weight"])

    def test_pickles_beside_safetensors_are_ignored(self, copy):
        (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert open_checkpoint(copy).tensors.files == [copy / "model.safetensors"]
