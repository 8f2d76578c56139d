"""Generations of equal shapes are told by config keys and by what was trained, or noted as open."""

from __future__ import annotations

import pytest
import torch
from generations import opened, refused
from older_doge import older_config, older_doge, spelling

from doge_export.checkpoint.identify import identify


class TestWithoutGroups:
    """With as many key/value heads as query heads the shapes of several generations coincide."""

    def test_the_fourth_by_its_key(self, tmp_path):
        checkpoint = opened(older_doge(tmp_path, "G4b", num_key_value_heads=4))
        assert checkpoint.identity.generation == "G4b"
        assert "dynamic_mask_ratio in config.json" in checkpoint.identity.reasons[0]
        assert checkpoint.identity.notes == ()
        assert not checkpoint.architecture.qk_norm and checkpoint.architecture.score == "exp"
        assert not any("_norm.weight" in name and "self_attn" in name for name in checkpoint.tensors)

    @pytest.mark.parametrize("key", ["keep_window_size", "is_causal"])
    def test_the_fourth_by_another_key(self, tmp_path, key):
        said = {"dynamic_mask_ratio": ..., "keep_window_size": ..., key: {"is_causal": False}.get(key, 20)}
        checkpoint = opened(older_doge(tmp_path, "G4b", num_key_value_heads=4, says=said))
        assert checkpoint.identity.generation == "G4b"
        assert f"{key} in config.json" in checkpoint.identity.reasons[0]

    def test_the_third_without_it_and_that_is_noted(self, tmp_path):
        folder = older_doge(tmp_path, "G3b", num_key_value_heads=4)
        checkpoint = opened(folder)
        assert checkpoint.identity.generation == "G3b"
        assert checkpoint.identity.notes == ("the files do not tell G3b from G4b: G3b is assumed (--generation)",)
        fourth = opened(folder, generation="G4b")
        assert fourth.architecture.score == "exp" and fourth.identity.notes == ()

    @pytest.mark.parametrize("head", ["lm_head", None])
    def test_the_fourth_by_its_trained_scores(self, tmp_path, head):
        """A config without its keys; in the third generation nothing trains A, which starts as ones."""
        stripped = {"dynamic_mask_ratio": ..., "keep_window_size": ..., "is_causal": ...}
        checkpoint = opened(older_doge(tmp_path, "G4b", head=head, num_key_value_heads=4, says=stripped))
        assert any((checkpoint.tensors[name] < 0).any() for name in checkpoint.tensors if name.endswith(".A"))
        assert checkpoint.identity.generation == "G4b"
        assert checkpoint.identity.reasons[0] == "G4b: pre_layernorm, and A was trained: some are negative"
        assert checkpoint.identity.notes == ()
        assert (checkpoint.architecture.score, checkpoint.architecture.score_heads) == ("exp", 4)
        third = opened(tmp_path, generation="G3b")
        assert third.architecture.score == "threshold"

    def test_the_third_by_scores_of_zero_and_more(self, tmp_path):
        def make_positive(tensors):
            for name in tensors:
                if name.endswith(".A"):
                    tensors[name] = tensors[name].abs()
                    tensors[name][0] = 0.0

        stripped = {"dynamic_mask_ratio": ..., "keep_window_size": ...}
        folder = older_doge(tmp_path, "G4b", num_key_value_heads=4, says=stripped, edit=make_positive)
        checkpoint = opened(folder)
        assert checkpoint.identity.generation == "G3b" and checkpoint.architecture.score == "none"
        assert checkpoint.identity.notes == ("the files do not tell G3b from G4b: G3b is assumed (--generation)",)

    def test_the_tensors_are_not_read_where_something_else_tells(self):
        """Neither where the shapes differ nor where the config has a key."""

        def never():
            raise AssertionError("looked into the tensors")

        for generation, changes in [("G3b", {}), ("G4b", {}), ("G4b", {"num_key_value_heads": 4}), ("G7", {})]:
            config = older_config(generation, **changes)
            shapes = spelling.tensors(generation, None, config)
            sizes = {"heads": 4, "kv_heads": config["num_key_value_heads"], "head_dim": 16}
            assert identify(shapes, config, **sizes, some_a_negative=never).generation == generation

    def test_columns_that_fit_neither_are_told_once(self, tmp_path):
        def narrow(tensors):
            tensors["model.layers.0.self_attn.dt_proj.weight"] = torch.ones(4, 60)

        folder = older_doge(tmp_path, "G4b", num_key_value_heads=4, edit=narrow)
        refused(folder, r"has 60 columns, expected 64 \(num_attention_heads x head_dim\)$")

    def test_the_fifth(self, tmp_path):
        checkpoint = opened(older_doge(tmp_path, "G5", num_key_value_heads=4))
        assert checkpoint.identity.generation == "G5"
        assert not checkpoint.architecture.qk_norm

    @pytest.mark.parametrize(("ratio", "told"), [(0.25, "G6a"), (0.0, "G6b")])
    def test_the_second_doge(self, tmp_path, ratio, told):
        """Both codes wrote dynamic_mask_ratio; only the first read it."""
        folder = older_doge(tmp_path, "G6a", num_key_value_heads=4, dynamic_mask_ratio=ratio)
        checkpoint = opened(folder)
        other = {"G6a": "G6b", "G6b": "G6a"}[told]
        assert checkpoint.identity.generation == told
        assert checkpoint.identity.notes == (
            f"the files do not tell {told} from {other}: {told} is assumed (--generation)",
        )
        assert opened(folder, generation=other).identity.generation == other
        assert (checkpoint.architecture.keep_window_size == 20) == (told == "G6b")

    def test_todays(self, tmp_path):
        assert opened(older_doge(tmp_path, "G7", num_key_value_heads=4)).identity.generation == "G7"
