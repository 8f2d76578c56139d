"""Every generation is told from its own tensor names, shapes and config keys; what contradicts itself is refused."""

from __future__ import annotations

import pytest
import spelling_of_today
import torch
from older_doge import LABELS, config_of, older_config, older_doge, spelling
from safetensors.torch import load_file

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.generation import Assumptions, identify
from doge_export.checkpoint.naming import expected_tensors
from doge_export.errors import DogeExportError, RunFailed

ALL = ["G1", "G2-early", "G2", "G3a", "G3b", "G4a", "G4b", "G5", "G6a", "G6b", "G7", "G8"]
# What the files say where they leave something open: G4a has no key of its own that matters without a ratio.
TOLD = {"G2-early": "G2", "G4a": "G4b"}
MOES = {
    "G1": ["M0", "M0-shared"],
    "G2": ["M1"],
    "G3a": ["M1"],
    "G3b": ["M1"],
    "G4a": ["M1"],
    "G4b": ["M1", "M4", "M5", "M6", "M6-bias", "M7"],
    **{generation: ["M7"] for generation in ("G5", "G6a", "G6b", "G7", "G8")},
}
G1A = r"the first ten days of the first generation \(G1a, early November 2024\) are not supported"
TOLD_MOE = {"M0-shared": "M0", "M5": "M4", "M6": "M7", "M6-bias": "M6"}


def opened(folder, **assumed):
    return open_checkpoint(folder, assumed=Assumptions(**assumed))


def logits_of(checkpoint):
    from doge_export.model import DogeForExport

    module = DogeForExport.from_tensors(checkpoint.architecture, checkpoint.tensors)
    return module(torch.arange(9)[None], torch.ones(1, 9, dtype=torch.int64), torch.arange(9)[None])[0].detach()


def refused(folder, pattern, **assumed):
    with pytest.raises(DogeExportError, match=pattern) as caught:
        opened(folder, **assumed)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert not isinstance(caught.value, RunFailed)


class TestTold:
    @pytest.mark.parametrize("generation", ALL)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_tensor_of_a_dense_one_arrives(self, tmp_path, generation, dtype):
        folder = older_doge(tmp_path, generation, dtype=dtype)
        checkpoint = opened(folder)
        identity = checkpoint.identity
        assert identity.generation == TOLD.get(generation, generation)
        assert identity.task == "text-generation"
        assert identity.reasons[0].startswith(f"{identity.generation}: ")
        assert all("whether RoPE turned the keys" in note for note in identity.notes)
        assert len(identity.notes) == (generation == "G2")  # see TestSecond
        spelling_of_today.assert_arrived(checkpoint.tensors, load_file(folder / "model.safetensors"))
        assert checkpoint.tensors.keys() == expected_tensors(checkpoint.architecture).keys()

    @pytest.mark.parametrize(("generation", "cdmoe"), [(g, m) for g, variants in MOES.items() for m in variants])
    def test_every_mixture_of_experts(self, tmp_path, generation, cdmoe):
        folder = older_doge(tmp_path, generation, cdmoe)
        checkpoint = opened(folder)
        assert checkpoint.identity.generation == TOLD.get(generation, generation)
        told = "M7-fixed" if generation == "G8" else TOLD_MOE.get(cdmoe, cdmoe)
        assert checkpoint.identity.cdmoe == checkpoint.architecture.moe.variant == told
        moe = checkpoint.architecture.moe
        assert (moe.num_experts, moe.num_keys, moe.num_experts_per_tok) == (20, 4, 3)
        assert moe.num_heads == (2 if cdmoe in ("M0", "M0-shared", "M1") else 1)
        assert moe.retrieval_size == (None if cdmoe[:2] in ("M6", "M7") else 8)
        assert moe.router_bias == (cdmoe == "M6-bias")
        spelling_of_today.assert_arrived(checkpoint.tensors, load_file(folder / "model.safetensors"))

    @pytest.mark.parametrize("generation", ALL)
    @pytest.mark.parametrize("head", [None, "lm_head", "score"])
    def test_every_head(self, tmp_path, generation, head):
        if head == "score" and generation[:2] < "G4":
            head = "classifier"
        folder = older_doge(tmp_path, generation, head=head)
        checkpoint = opened(folder)
        tasks = {None: "feature-extraction", "lm_head": "text-generation"}
        assert checkpoint.identity.task == tasks.get(head, "text-classification")
        architecture = checkpoint.architecture
        assert architecture.task == checkpoint.identity.task
        assert architecture.labels == (tuple(LABELS.values()) if head in ("score", "classifier") else ())
        assert architecture.first_pad_pooling == (head == "classifier")
        spelling_of_today.assert_arrived(checkpoint.tensors, load_file(folder / "model.safetensors"))

    @pytest.mark.parametrize("generation", ["G4a", "G4b"])
    def test_the_fourth_generation_called_its_classifier_by_two_names(self, tmp_path, generation):
        checkpoint = opened(older_doge(tmp_path, generation, head="classifier"))
        assert checkpoint.architecture.task == "text-classification"
        assert checkpoint.architecture.first_pad_pooling

    @pytest.mark.parametrize("generation", ["G5", "G6a", "G6b", "G7"])
    def test_residuals_that_are_modules(self, tmp_path, generation):
        def spelt_as_modules(tensors):
            for name in [name for name in tensors if name.endswith("_residual")]:
                tensors[f"{name}.weight"] = tensors.pop(name)

        checkpoint = opened(older_doge(tmp_path, generation, edit=spelt_as_modules))
        assert checkpoint.identity.generation == generation
        assert "model.layers.1.post_attention_residual" in checkpoint.tensors

    @pytest.mark.parametrize("generation", ["G3b", "G4b", "G5", "G7"])
    @pytest.mark.parametrize("with_key", [True, False])
    def test_tied_heads(self, tmp_path, generation, with_key):
        """Older code tied the head where a config did not say so."""
        folder = older_doge(tmp_path, generation, says={} if with_key else {"tie_word_embeddings": ...})
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")
        if generation == "G7" and not with_key:
            refused(folder, r"lm_head\.weight is missing, but tie_word_embeddings is false, the default")
        else:
            checkpoint = opened(folder)
            assert checkpoint.architecture.tie_word_embeddings
            assert "lm_head.weight" not in checkpoint.tensors

    @pytest.mark.parametrize("generation", ["G3b", "G4b", "G5", "G7"])
    def test_a_stored_head_is_the_head_where_the_config_does_not_say(self, tmp_path, generation):
        folder = older_doge(tmp_path, generation, tie_word_embeddings=False, says={"tie_word_embeddings": ...})
        assert not opened(folder).architecture.tie_word_embeddings

    def test_a_bare_model_with_the_name_of_a_language_model_is_one_when_tied(self, tmp_path):
        folder = older_doge(tmp_path / "tied", "G7", head=None, says={"architectures": ["DogeForCausalLM"]})
        assert opened(folder).architecture.task == "text-generation"
        says = {"architectures": ["DogeForCausalLM"], "tie_word_embeddings": False}
        refused(older_doge(tmp_path / "untied", "G7", head=None, says=says), r"lm_head\.weight is missing")


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


AT = {"G3a": "attn", "G3b": "self_attn"}


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


class TestMechanisms:
    """What the generation says of attention."""

    @pytest.mark.parametrize(
        ("generation", "score", "score_heads", "window", "norms"),
        [
            ("G2", "none", 1, 0, False),
            ("G4a", "exp", 4, 0, False),
            ("G4b", "exp", 4, 0, False),
            ("G5", "exp", 4, 20, False),
            ("G6a", "exp", 4, 0, True),
            ("G6b", "exp", 2, 20, True),
            ("G7", "exp", 2, 20, True),
            ("G8", "linear", 2, 20, True),
        ],
    )
    def test_architecture(self, tmp_path, generation, score, score_heads, window, norms):
        architecture = opened(older_doge(tmp_path, generation)).architecture
        assert (architecture.score, architecture.score_heads) == (score, score_heads)
        assert (architecture.keep_window_size, architecture.qk_norm) == (window, norms)
        assert architecture.rotates_keys == (generation != "G2")
        assert architecture.ratio_mask is None
        assert architecture.gated_mlp and architecture.weighted_residuals

    def test_residuals_of_the_second_generation(self, tmp_path):
        assert not opened(older_doge(tmp_path / "early", "G2-early")).architecture.weighted_residuals
        assert opened(older_doge(tmp_path / "late", "G2")).architecture.weighted_residuals

    @pytest.mark.parametrize("generation", ["G4a", "G4b"])
    def test_is_causal_takes_the_scores_place(self, tmp_path, generation):
        checkpoint = opened(older_doge(tmp_path, generation, is_causal=True))
        assert (checkpoint.architecture.score, checkpoint.architecture.score_heads) == ("none", 1)
        assert not any(".dt_proj." in name for name in checkpoint.tensors)
        assert "is_causal" in checkpoint.identity.reasons[-1]

    @pytest.mark.parametrize("generation", ["G1", "G2", "G3a", "G3b", "G4b", "G5", "G7"])
    def test_biases(self, tmp_path, generation):
        keys = ["hidden_bias"] if generation[:2] < "G5" else ["attention_bias", "mlp_bias"]
        folder = older_doge(tmp_path, generation, **dict.fromkeys(keys, True))
        checkpoint = opened(folder)
        assert checkpoint.architecture.attention_bias and checkpoint.architecture.mlp_bias
        spelling_of_today.assert_arrived(checkpoint.tensors, load_file(folder / "model.safetensors"))

    @pytest.mark.parametrize(
        ("generation", "cdmoe"), [(g, None) for g in ALL] + [(g, m) for g, variants in MOES.items() for m in variants]
    )
    @pytest.mark.parametrize("biased", [False, True])
    def test_the_module_has_exactly_these_tensors(self, tmp_path, generation, cdmoe, biased):
        keys = ["hidden_bias"] if generation[:2] < "G5" else ["attention_bias"]
        logits = logits_of(opened(older_doge(tmp_path, generation, cdmoe, **dict.fromkeys(keys, biased))))
        assert logits.shape == (1, 9, 160)
        assert logits.isfinite().all() and logits.std() > 0.1


class TestRatio:
    @pytest.mark.parametrize(
        ("generation", "ratio", "scope", "keep", "of_excess"),
        [
            ("G4b", 0.3, None, 20, True),
            ("G4b", 0.3, "all", 0, False),
            ("G4b", 0.3, "guarded", 20, False),
            ("G4b", 1.0, None, 20, True),
            ("G6a", 0.3, None, 20, True),
            ("G6a", 0.3, "excess", 20, True),
            ("G4a", 0.3, None, 0, False),
            ("G4a", 0.3, "all", 0, False),
        ],
    )
    def test_rule(self, tmp_path, generation, ratio, scope, keep, of_excess):
        folder = older_doge(tmp_path, generation, dynamic_mask_ratio=ratio)
        assumed = {"generation": "G4a"} if generation == "G4a" else {}
        mask = opened(folder, ratio_mask=scope, **assumed).architecture.ratio_mask
        assert (mask.ratio, mask.keep_window_size, mask.of_excess) == (ratio, keep, of_excess)
        assert mask.adds_causality == (generation != "G4a")

    @pytest.mark.parametrize("scope", ["all", "guarded"])
    def test_one_is_no_share_before_the_excess(self, tmp_path, scope):
        """That code asked for a ratio below 1."""
        folder = older_doge(tmp_path, "G4b", dynamic_mask_ratio=1.0)
        assert opened(folder, ratio_mask=scope).architecture.ratio_mask is None

    def test_notes(self, tmp_path):
        fourth = opened(older_doge(tmp_path / "b", "G4b", dynamic_mask_ratio=0.3)).identity
        assert fourth.notes == (
            "the files do not tell which keys dynamic_mask_ratio counts: excess is assumed (--ratio-mask)",
        )
        early = opened(older_doge(tmp_path / "a", "G4a", dynamic_mask_ratio=0.3)).identity
        assert early.notes == ("the files do not tell G4b from G4a: G4b is assumed (--generation)",)
        assert opened(older_doge(tmp_path / "2", "G6a", dynamic_mask_ratio=0.3)).identity.notes == ()

    def test_the_working_second_doge_does_not_read_it(self, tmp_path):
        assert opened(older_doge(tmp_path, "G6b", dynamic_mask_ratio=0.3)).architecture.ratio_mask is None

    @pytest.mark.parametrize("scope", ["guarded", "excess"])
    def test_needs_a_window(self, tmp_path, scope):
        folder = older_doge(tmp_path, "G4a", dynamic_mask_ratio=0.3)
        refused(folder, f"--ratio-mask {scope} needs keep_window_size", ratio_mask=scope)

    @pytest.mark.parametrize("generation", ["G1", "G4b", "G6a", "G7"])
    def test_nothing_to_choose(self, tmp_path, generation):
        refused(older_doge(tmp_path, generation), "--ratio-mask all: config.json has no", ratio_mask="all")

    @pytest.mark.parametrize("scope", ["all", "guarded"])
    def test_the_second_doge_has_one_rule(self, tmp_path, scope):
        refused(older_doge(tmp_path, "G6a", dynamic_mask_ratio=0.3), f"--ratio-mask {scope}", ratio_mask=scope)


class TestAssumed:
    @pytest.mark.parametrize(
        ("generation", "cdmoe", "other"),
        [("G4b", "M7", "M6"), ("G4b", "M4", "M5"), ("G8", "M7", "M7"), ("G4b", "M6", "M6"), ("G7", "M7", "M7")],
    )
    def test_variants_that_tensors_leave_open(self, tmp_path, generation, cdmoe, other):
        folder = older_doge(tmp_path, generation, cdmoe)
        checkpoint = opened(folder, cdmoe=other)
        assert checkpoint.identity.cdmoe == checkpoint.architecture.moe.variant == other
        assert checkpoint.identity.notes == ()
        assert checkpoint.assumed.to_dict() == {"cdmoe": other}

    @pytest.mark.parametrize(
        ("generation", "cdmoe", "told", "other"),
        [("G4b", "M6", "M7", "M6"), ("G4b", "M5", "M4", "M5"), ("G8", "M7", "M7-fixed", "M7")],
    )
    def test_and_their_notes(self, tmp_path, generation, cdmoe, told, other):
        (note,) = opened(older_doge(tmp_path, generation, cdmoe)).identity.notes
        assert note.startswith(f"the files do not tell mixture of experts {told} from {other}: {told} is assumed")

    @pytest.mark.parametrize(
        ("generation", "cdmoe", "other"),
        [
            ("G1", "M0", "M1"),
            ("G4b", "M1", "M0"),
            ("G4b", "M4", "M7"),
            ("G4b", "M7", "M4"),
            ("G4b", "M6-bias", "M7"),
            ("G4b", "M7", "M7-fixed"),
            ("G5", "M7", "M6"),
            ("G7", "M7", "M6"),
            ("G7", "M7", "M7-fixed"),
        ],
    )
    def test_variants_that_tensors_rule_out(self, tmp_path, generation, cdmoe, other):
        refused(
            older_doge(tmp_path, generation, cdmoe), f"--cdmoe {other}: the mixture of experts is of M", cdmoe=other
        )

    def test_variant_of_a_dense_one(self, tmp_path):
        refused(older_doge(tmp_path, "G4b"), "--cdmoe M7: the checkpoint has no mixture of experts", cdmoe="M7")

    @pytest.mark.parametrize(("generation", "other"), [("G4b", "G4a"), ("G7", "G8"), ("G8", "G7")])
    def test_generations_that_tensors_leave_open(self, tmp_path, generation, other):
        checkpoint = opened(older_doge(tmp_path, generation), generation=other)
        assert checkpoint.identity.generation == checkpoint.architecture.generation == other

    @pytest.mark.parametrize("generation", ALL)
    def test_generations_that_tensors_rule_out(self, tmp_path, generation):
        other = "G7" if generation == "G1" else "G1"
        refused(older_doge(tmp_path, generation), f"--generation {other}: the tensors are of G", generation=other)

    @pytest.mark.parametrize(
        ("name", "value"), [("task", "chat"), ("generation", "G9"), ("cdmoe", "M2"), ("ratio_mask", "some")]
    )
    def test_what_there_is_not(self, name, value):
        with pytest.raises(DogeExportError, match=f"{name} is '{value}', expected one of "):
            Assumptions(**{name: value})

    def test_taken_from_options(self):
        options = {"task": None, "generation": "G4a", "revision": "main", "offline": True}
        assert Assumptions.taken_from(options) == (Assumptions(generation="G4a"), {"revision": "main", "offline": True})
        assert options.keys() == {"task", "generation", "revision", "offline"}
        with pytest.raises(DogeExportError, match="generation is 'G9'"):
            Assumptions.taken_from({"generation": "G9"})

    @pytest.mark.parametrize("generation", ["G1", "G4b", "G7"])
    def test_hidden_states_of_anything(self, tmp_path, generation):
        for head in (None, "lm_head", "classifier" if generation == "G1" else "score"):
            folder = older_doge(tmp_path / str(head), generation, head=head)
            checkpoint = opened(folder, task="feature-extraction")
            assert checkpoint.architecture.task == "feature-extraction"
            assert not {"lm_head.weight", "score.weight"} & checkpoint.tensors.keys()

    def test_heads_that_are_not_there(self, tmp_path):
        refused(
            older_doge(tmp_path / "lm", "G7"), "--task text-classification needs a classif", task="text-classification"
        )
        refused(older_doge(tmp_path / "score", "G7", head="score"), "--task text-generation", task="text-generation")
        untied = older_doge(tmp_path / "untied", "G7", head=None, tie_word_embeddings=False)
        refused(untied, r"--task text-generation needs lm_head\.weight", task="text-generation")

    def test_a_tied_bare_model_has_its_head(self, tmp_path):
        folder = older_doge(tmp_path, "G7", head=None)
        assert opened(folder, task="text-generation").architecture.task == "text-generation"


class TestPadding:
    """By its padding id a classifier finds the end of a text; for other tasks it means nothing."""

    @pytest.mark.parametrize("generation", ["G1", "G4b", "G7"])
    @pytest.mark.parametrize("pad", [-1, 160, 999])
    def test_one_outside_the_vocabulary(self, tmp_path, generation, pad):
        folder = older_doge(tmp_path / "classes", generation, head=CLASSIFIERS[generation], says={"pad_token_id": pad})
        pattern = rf"pad_token_id is {pad}, expected a token below vocab_size \(160\)"
        refused(folder, pattern)
        assert opened(folder, task="feature-extraction").architecture.pad_token_id is None
        unnamed = older_doge(
            tmp_path / "unnamed",
            *(generation, None, CLASSIFIERS[generation]),
            says={"pad_token_id": pad, "architectures": ...},
        )
        refused(unnamed, pattern)
        for head in ("lm_head", None):
            folder = older_doge(tmp_path / str(head), generation, head=head, says={"pad_token_id": pad})
            assert opened(folder).architecture.pad_token_id is None

    @pytest.mark.parametrize("pad", [0, 159, None])
    def test_one_inside_and_none(self, tmp_path, pad):
        folder = older_doge(tmp_path / "classes", "G4b", head="score", says={"pad_token_id": pad})
        assert opened(folder).architecture.pad_token_id == pad
        folder = older_doge(tmp_path / "text", "G4b", says={"pad_token_id": pad})
        assert opened(folder).architecture.pad_token_id == pad

    @pytest.mark.parametrize("assumed", [{}, {"task": "text-classification"}])
    def test_a_classifier_is_refused_before_its_weights_are_there(self, tmp_path, assumed):
        folder = older_doge(tmp_path, "G4b", head="score", says={"pad_token_id": 999})
        (folder / "model.safetensors").write_bytes(b"not yet")
        refused(folder, "pad_token_id is 999", **assumed)
        refused(folder, "is not a whole safetensors file", task="feature-extraction")


CLASSIFIERS = {"G1": "classifier", "G4b": "score", "G7": "score"}


def mixed(**renamed):
    """Renames parts of the names in the last layer."""

    def edit(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            for old, new in renamed.items():
                if f".{old}." in name:
                    tensors[name.replace(f".{old}.", f".{new}.")] = tensors.pop(name)

    return edit


def drop(part):
    def edit(tensors):
        for name in [name for name in tensors if part in name]:
            del tensors[name]

    return edit


def add(**shapes):
    return lambda tensors: tensors.update({name: torch.ones(shape) for name, shape in shapes.items()})


def shaped(name, *shape):
    return lambda tensors: tensors.update({name: torch.ones(shape)})


HARD, SOFT = "layers.1.self_attn.", "model.layers.1.self_attn."
# What would be left out is looked at first.
INERT = {
    "G3b without A": ("G3b", {"edit": drop("self_attn.A")}, r"2 missing \(model\.layers\.0\.self_attn\.A,"),
    "G3b without A in a layer": ("G3b", {"edit": drop(f"{HARD}A")}, r"1 missing \(model\.layers\.1\.self_attn\.A\)"),
    "G3a without scores": (
        "G3a",
        {"edit": lambda tensors: [drop(part)(tensors) for part in ("attn.A", "attn.dt_proj")]},
        r"4 missing \(model\.layers\.0\.self_attn\.A, model\.layers\.0\.self_attn\.dt_proj",
    ),
    "G3b dt_proj of a wrong shape": (
        "G3b",
        {"edit": shaped(f"{SOFT}dt_proj.weight", 4, 60)},
        r"dt_proj\.weight has shape \[4, 60\], config\.json implies \[4, 64\]",
    ),
    "G3b dt_proj over values that are not repeated": (
        "G3b",
        {"edit": shaped(f"{SOFT}dt_proj.weight", 4, 32)},
        r"dt_proj\.weight has shape \[4, 32\], config\.json implies \[4, 64\]",
    ),
    "G3b dt_proj without its bias": (
        "G3b",
        {"hidden_bias": True, "edit": drop(f"{HARD}dt_proj.bias")},
        r"1 missing \(model\.layers\.1\.self_attn\.dt_proj\.bias",
    ),
    "is_causal without dt_proj": (
        "G4b",
        {"is_causal": True, "edit": drop(f"{HARD}dt_proj")},
        r"1 missing \(model\.layers\.1\.self_attn\.dt_proj\.weight",
    ),
    "is_causal, A of a wrong shape": (
        "G4b",
        {"is_causal": True, "edit": shaped(f"{SOFT}A", 99)},
        r"self_attn\.A has shape \[99\], config\.json implies \[4\]",
    ),
    **{
        f"{generation} dynamic_mask {what}": (generation, {"edit": edit}, pattern)
        for generation in ("G1", "G2-early", "G2")
        for what, edit, pattern in [
            (
                "of a wrong shape",
                shaped("model.layers.1.attn.dynamic_mask", 1, 1),
                r"tensor model\.layers\.1\.attn\.dynamic_mask has shape \[1, 1\], config\.json implies \[4, 48\]",
            ),
            ("missing", drop("layers.1.attn.dynamic_mask"), r"1 missing \(model\.layers\.1\.self_attn\.dynamic_mask"),
        ]
    },
}

CONTRADICTIONS = {
    **INERT,
    "ratio of the fourth": (
        "G5",
        {"says": {"dynamic_mask_ratio": 0.5}},
        "dynamic_mask_ratio 0.5, .* tensors are of G5",
    ),
    "ratio on today's": ("G7", {"says": {"dynamic_mask_ratio": 0.5}}, "dynamic_mask_ratio 0.5.*--generation G7"),
    "inner values without a table": ("G7", {"says": {"num_inner_values": 8}}, "num_inner_values 8, .* of G7"),
    "inner values on the fourth": ("G4b", {"says": {"num_inner_values": 8}}, "num_inner_values 8, .* of G4b"),
    "window of G8 beside today's": ("G7", {"says": {"window_size": 64}}, "window_size 64, a value of generation G8"),
    "window of G8 on the fifth": ("G5", {"says": {"window_size": 64, "keep_window_size": ...}}, "window_size 64"),
    "window on the third": ("G3b", {"says": {"keep_window_size": 64}}, "keep_window_size 64, .* of G3b"),
    "window on the first": ("G1", {"says": {"keep_window_size": 64}}, "keep_window_size 64, .* of G1"),
    "is_causal on the fifth": ("G5", {"says": {"is_causal": True}}, "is_causal true, .* of G5"),
    "doge2 with old names": ("G4b", {"says": {"model_type": "doge2"}}, 'model_type "doge2", but .* G4b'),
    "doge2 without norms": ("G5", {"says": {"model_type": "doge2"}}, 'model_type "doge2", but .* G5'),
    "doge with rows for query heads": ("G6a", {"says": {"model_type": "doge"}}, 'model_type "doge", but .* G6a'),
    "dense config, experts": ("G7", {"cdmoe": "M7", "says": {"is_moe": False}}, "is_moe false, but the checkpoint has"),
    "no is_moe, experts": ("G5", {"cdmoe": "M7", "says": {"is_moe": ...}}, "has no is_moe, which means false, but"),
    "experts config, dense": ("G4b", {"says": {"is_moe": True}}, "is_moe true, but the checkpoint has no down_embed"),
    "classifier named, language model there": (
        "G7",
        {"says": {"architectures": ["DogeForSequenceClassification"]}},
        r"names DogeForSequenceClassification, but there is no score\.weight",
    ),
    "second Doge's classifier named": (
        "G6b",
        {"says": {"architectures": ["Doge2ForSequenceClassification"]}},
        "names Doge2ForSequenceClassification",
    ),
    "language model named, classifier there": (
        "G7",
        {"head": "score", "says": {"architectures": ["DogeForCausalLM"]}},
        r"names DogeForCausalLM, but the head is score\.weight",
    ),
    "two heads": ("G7", {"edit": add(**{"score.weight": (3, 64), "lm_head.weight": (160, 64)})}, "has one head"),
    "two classifiers": ("G4b", {"head": "score", "edit": add(**{"classifier.weight": (3, 64)})}, "has one head"),
    "an old classifier's name today": (
        "G7",
        {"head": "classifier"},
        r"must be one matrix score\.weight .*seen (model\.)?classifier\.weight",
    ),
    "a head with one axis": ("G7", {"head": "score", "edit": add(**{"score.weight": (3,)})}, "must be one matrix"),
    "fewer labels than rows": ("G7", {"head": "score", "says": {"id2label": {"0": "a"}}}, "id2label has 1 names"),
    "labels that are no texts": ("G7", {"head": "score", "says": {"id2label": {"0": 1, "1": 2, "2": 3}}}, "id2label"),
    "another width": ("G4b", {"says": {"intermediate_size": 97}}, r"has shape \[96, 64\], config\.json implies \[97"),
    "another vocabulary": ("G1", {"says": {"vocab_size": 161}}, r"tensor model\.word_embed\.weight has shape"),
    "another width of the inner keys": (
        "G1",
        {"says": {"inner_values_retrieval_size": 4}},
        r"attn\.v_(keys|queries\.weight) has shape",
    ),
    "more inner values picked than there are": ("G1", {"says": {"num_value_per_head": 9}}, "at most num_inner_values"),
    "another number of experts": ("G4b", {"cdmoe": "M7", "says": {"num_experts": 16}}, "_embed.weight has shape"),
    "more picked than in reach": (
        "G4b",
        {"cdmoe": "M1", "says": {"num_cdmoe_experts_per_head": 17}},
        "num_cdmoe_experts_per_head is 17, but num_cdmoe_experts 20 gives only 4 x 4 = 16",
    ),
    "other heads": ("G4b", {"says": {"num_key_value_heads": 1}}, r"dt_proj\.weight has 32 columns, expected 16"),
    "today's layer in an old one": (
        "G4b",
        {"edit": mixed(pre_layernorm="input_layernorm", feed_forward="mlp")},
        "has a name of today among those of an older generation",
    ),
    "today's attention in the first": ("G1", {"edit": mixed(attn="self_attn")}, "has a name of today among"),
    "an old layer in today's": (
        "G7",
        {"edit": mixed(mlp="feed_forward")},
        r"3 missing .*, 3 unexpected .*feed_forward",
    ),
    "the third's layer in the fourth": (
        "G4b",
        {"edit": mixed(pre_layernorm="pre_sequence_layernorm")},
        r"1 missing .*1 unexpected \(model\.layers\.1\.pre_sequence_layernorm\.weight\)",
    ),
    "one tensor under two names": (
        "G7",
        {"edit": add(**{"model.layers.0.input_residual.weight": (64,)})},
        "input_residual(.weight)? and model.layers.0.input_residual(.weight)? are one and the same",
    ),
    "no layers": ("G7", {"edit": drop(".layers.")}, "no Doge generation"),
    "no norm to tell by": ("G7", {"edit": drop("input_layernorm")}, "those of no Doge generation"),
    "no gates": ("G7", {"edit": drop("gate_proj")}, r"2 missing \(model\.layers\.0\.mlp\.gate_proj\.weight"),
    "no residual weights": ("G4b", {"edit": drop("_residual")}, r"4 missing \(model\.layers\.0\.input_residual"),
    "no scores": ("G7", {"edit": drop("self_attn.A")}, r"2 missing \(model\.layers\.0\.self_attn\.A"),
    "no projection of scores": ("G4b", {"edit": drop("dt_proj")}, r"dt_proj\.weight has 0 columns"),
    "norms of queries lost in one layer": ("G7", {"edit": drop("layers.1.self_attn.q_norm")}, "1 missing"),
    "router with a bias today": (
        "G7",
        {"cdmoe": "M7", "edit": add(**{"model.layers.0.mlp.router_gate.bias": (8,)})},
        r"1 unexpected \(model\.layers\.0\.mlp\.router_gate\.bias\)",
    ),
    "scores of a third axis": (
        "G7",
        {"edit": add(**{f"model.layers.{layer}.self_attn.A": (2, 1) for layer in range(2)})},
        r"self_attn\.A has shape \[2, 1\]",
    ),
    "a router of no known form": (
        "G4b",
        {"cdmoe": "M7", "edit": drop("router_gate")},
        "mixture of experts is of no known form",
    ),
    "queries without a gate": ("G3a", {"cdmoe": "M1", "edit": drop("gate_proj")}, "a form of one day"),
    "M2": ("G4b", {"cdmoe": "M2"}, "M2 or M3: queries_proj with several heads.*not supported"),
    "M3": ("G4b", {"cdmoe": "M3"}, "M2 or M3: queries_proj with several heads.*not supported"),
    "M2 of two heads, keys like those of M4": (
        "G4b",
        {"cdmoe": "M2", "num_cdmoe_heads": 2},
        "M2 or M3",
    ),
    "M3 of one head, keys like those of M4": ("G4b", {"cdmoe": "M3", "num_cdmoe_heads": 1}, "M2 or M3"),
}


@pytest.mark.parametrize(("generation", "options", "pattern"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_one_line(tmp_path, generation, options, pattern):
    refused(older_doge(tmp_path, generation, **options), pattern)


@pytest.mark.parametrize("named", [5, "DogeForCausalLM", {"a": 1}, [None, 3], [], None])
def test_architectures_that_name_nothing(tmp_path, named):
    folder = older_doge(tmp_path, "G7", says={"architectures": named})
    assert config_of(folder)["architectures"] == named
    assert opened(folder).identity.task == "text-generation"


def test_the_user_overrides_a_config_of_another_generation(tmp_path):
    folder = older_doge(tmp_path, "G6a", says={"model_type": "doge"})
    assert opened(folder, generation="G6a").identity.generation == "G6a"
    folder = older_doge(tmp_path / "window", "G7", says={"window_size": 64})
    assert opened(folder, generation="G7").architecture.keep_window_size == 20
    assert opened(folder, generation="G8").architecture.keep_window_size == 20
