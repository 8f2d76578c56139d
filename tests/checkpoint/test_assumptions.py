"""What the files leave open can be said; what they rule out cannot."""

from __future__ import annotations

import pytest
from generations import ALL, opened, refused
from older_doge import older_doge

from doge_export.checkpoint.identify import Assumptions
from doge_export.errors import DogeExportError


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
