"""What is special about the first three generations, of November and December 2024."""

from __future__ import annotations

import pytest
import torch
from generations import logits_of, opened, refused
from older_doge import older_doge
from safetensors.torch import load_file

G1A = r"the first ten days of the first generation \(G1a, early November 2024\) are not supported"
AT = {"G3a": "attn", "G3b": "self_attn"}


class TestFirst:
    def test_architecture(self, tmp_path):
        architecture = opened(older_doge(tmp_path, "G1")).architecture
        inner = architecture.inner_values
        assert (inner.num_values, inner.num_heads, inner.num_values_per_head, inner.retrieval_size) == (8, 2, 3, 8)
        assert not (architecture.rotates_keys or architecture.qk_norm or architecture.gated_mlp)
        assert not architecture.weighted_residuals and architecture.score == "none"
        assert architecture.moe.weights_inside and not architecture.moe.mixes_tokens

    @pytest.mark.parametrize("cdmoe", ["M0", "M0-shared"])
    def test_one_inner_head(self, tmp_path, cdmoe):
        """Before 13 November 2024 keys were [values, width] and the best value was taken."""
        gone = {"num_inner_value_heads": ..., "num_value_per_head": ...}
        folder = older_doge(tmp_path, "G1", cdmoe, **gone)
        checkpoint = opened(folder)
        inner = checkpoint.architecture.inner_values
        assert (inner.num_heads, inner.num_values_per_head, inner.retrieval_size) == (1, 1, 8)
        stored = load_file(folder / "model.safetensors")["model.layers.1.attn.v_keys"]
        assert stored.shape == (8, 8)
        assert torch.equal(checkpoint.tensors["model.layers.1.self_attn.v_proj.keys"][0], stored.T)
        assert any("G1b" in note for note in checkpoint.identity.notes) == (cdmoe == "M0-shared")

    def test_retrieval_width_from_the_tensors(self, tmp_path):
        folder = older_doge(tmp_path, "G1", says={"inner_values_retrieval_size": ...})
        assert opened(folder).architecture.inner_values.retrieval_size == 8

    def test_both_kinds_of_values(self, tmp_path):
        def add(tensors):
            tensors["model.layers.0.attn.v_proj.weight"] = torch.ones(64, 64)

        refused(older_doge(tmp_path, "G1", edit=add), "lived for one day in November 2024")

    def test_narrow_shared_experts(self, tmp_path):
        def narrow(tensors):
            for layer in range(2):
                tensors[f"model.layers.{layer}.feed_forward.shared_down_proj.weight"] = torch.ones(32, 96)

        refused(older_doge(tmp_path, "G1", "M0-shared", edit=narrow), G1A)

    @pytest.mark.parametrize("key", ["cross_domain_intermediate_size", "private_expert_intermediate_size"])
    def test_configs_of_the_first_ten_days(self, tmp_path, key):
        """They have these keys instead of intermediate_size."""
        folder = older_doge(tmp_path, "G1", "M0-shared", says={"intermediate_size": ..., key: 32})
        refused(folder, f"config.json has {key}: {G1A}")

    def test_without_experts(self, tmp_path):
        def drop(tensors):
            for name in [name for name in tensors if "_embed.weight" in name and "feed_forward" in name]:
                del tensors[name]

        refused(older_doge(tmp_path, "G1", edit=drop), "always has a mixture of experts")

    @pytest.mark.parametrize("generation", ["G1", "G2-early", "G2"])
    def test_a_dynamic_mask_with_zeros_is_refused_and_one_without_is_left_out(self, tmp_path, generation):
        def hide(tensors):
            tensors["model.layers.1.attn.dynamic_mask"][2, 7] = 0.0

        checkpoint = opened(older_doge(tmp_path / "ones", generation))
        assert not any("dynamic_mask" in name for name in checkpoint.tensors)
        assert any("dynamic_mask has no zero" in reason for reason in checkpoint.identity.reasons)
        refused(
            older_doge(tmp_path / "zero", generation, edit=hide),
            r"tensor model\.layers\.1\.self_attn\.dynamic_mask has zeros",
        )

    def test_a_nan_in_what_is_left_out_is_still_found(self, tmp_path):
        def spoil(tensors):
            tensors["model.layers.1.attn.dynamic_mask"][2, 7] = float("nan")

        refused(older_doge(tmp_path, "G1", edit=spoil), r"attn\.dynamic_mask in .* holds NaN")


class TestSecond:
    """From the evening of 9 December 2024 RoPE turned keys; the same commit renamed a key of the config."""

    LATER, EARLIER = {"expert_retrieval_size": 8}, {"private_expert_retrieval_size": 8}

    @pytest.mark.parametrize("cdmoe", [None, "M1"])
    def test_keys_are_turned_where_the_config_has_the_later_key(self, tmp_path, cdmoe):
        changes = {**dict.fromkeys(self.EARLIER, ...), **self.LATER}
        checkpoint = opened(older_doge(tmp_path, "G2", cdmoe, **changes))
        assert checkpoint.architecture.rotates_keys
        assert "expert_retrieval_size in config.json: RoPE turns keys, too" in checkpoint.identity.reasons
        assert checkpoint.identity.notes == ()
        before = opened(older_doge(tmp_path, "G2", cdmoe, **self.EARLIER))
        later, earlier = (logits_of(found) for found in (checkpoint, before))
        assert (later - earlier).abs().max() > 1e-2

    @pytest.mark.parametrize("cdmoe", [None, "M1"])
    def test_and_not_where_it_has_the_earlier_one(self, tmp_path, cdmoe):
        checkpoint = opened(older_doge(tmp_path, "G2", cdmoe, **self.EARLIER))
        assert not checkpoint.architecture.rotates_keys
        assert "private_expert_retrieval_size in config.json: RoPE turns queries only" in checkpoint.identity.reasons
        assert checkpoint.identity.notes == ()

    def test_without_either_it_is_noted(self, tmp_path):
        checkpoint = opened(older_doge(tmp_path / "late", "G2"))
        assert not checkpoint.architecture.rotates_keys
        (note,) = checkpoint.identity.notes
        assert note.startswith("the files do not tell whether RoPE turned the keys")
        early = opened(older_doge(tmp_path / "early", "G2-early"))
        assert not early.architecture.rotates_keys and early.identity.notes == ()
        assert any("names of 8 December 2024" in reason for reason in early.identity.reasons)


class TestThird:
    @pytest.mark.parametrize("generation", ["G3a", "G3b"])
    @pytest.mark.parametrize("least", [0.0, 1.0])
    def test_a_mask_that_hides_nothing_is_left_out(self, tmp_path, generation, least):
        def set_least(tensors):
            for name in tensors:
                if name.endswith(".A"):
                    tensors[name][1] = least

        checkpoint = opened(older_doge(tmp_path, generation, edit=set_least))
        assert (checkpoint.architecture.score, checkpoint.architecture.score_heads) == ("none", 1)
        assert not any(name.endswith(".A") or ".dt_proj." in name for name in checkpoint.tensors)
        assert "no A is negative" in checkpoint.identity.reasons[-1]

    @pytest.mark.parametrize("generation", ["G3a", "G3b"])
    def test_one_that_hides_is_kept(self, tmp_path, generation):
        def make_negative(tensors):
            tensors[next(name for name in tensors if name.endswith("layers.1." + AT[generation] + ".A"))][2] = -0.3

        checkpoint = opened(older_doge(tmp_path, generation, edit=make_negative))
        assert (checkpoint.architecture.score, checkpoint.architecture.score_heads) == ("threshold", 4)
        assert checkpoint.tensors["model.layers.1.self_attn.A"][2] == torch.tensor(-0.3)

    def test_scores_of_repeated_values_are_those_of_the_folded_projection(self, tmp_path):
        def make_negative(tensors):
            tensors["model.layers.0.self_attn.A"][0] = -1.0

        folder = older_doge(tmp_path, "G3b", edit=make_negative)
        stored = load_file(folder / "model.safetensors")["model.layers.1.self_attn.dt_proj.weight"].double()
        folded = opened(folder).tensors["model.layers.1.self_attn.dt_proj.weight"].double()
        assert stored.shape == (4, 64) and folded.shape == (4, 32)
        values = torch.randn(5, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        copies = torch.stack([values[:, head // 2] for head in range(4)], dim=1)  # two query heads for each value head
        expected, found = copies.flatten(1) @ stored.T, values.flatten(1) @ folded.T
        assert torch.allclose(found, expected, atol=1e-5)
        assert expected.std() > 0.5

    def test_the_days_before(self, tmp_path):
        def rename(tensors):
            for layer in range(2):
                tensors[f"model.layers.{layer}.attn.A_log"] = tensors.pop(f"model.layers.{layer}.attn.A")

        refused(older_doge(tmp_path, "G3a", edit=rename), r"A_log is a transitional form of December 2024")
