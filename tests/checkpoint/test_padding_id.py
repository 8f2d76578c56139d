"""A padding id that the vocabulary lacks."""

from __future__ import annotations

import pytest
from generations import opened, refused
from older_doge import older_doge

CLASSIFIERS = {"G1": "classifier", "G4b": "score", "G7": "score"}


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
