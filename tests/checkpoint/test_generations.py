"""Every generation is told from its own tensor names, shapes and config keys, and says what it computes."""

from __future__ import annotations

import pytest
import spelling_of_today
import torch
from generations import ALL, MOES, TOLD, TOLD_MOE, logits_of, opened, refused
from older_doge import LABELS, config_of, older_doge
from safetensors.torch import load_file

from doge_export.checkpoint.naming import expected_tensors


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
