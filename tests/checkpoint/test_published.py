"""The published models' table: names, generations and sizes are those of the hub."""

from __future__ import annotations

import json
import math

import pytest
from older_doge import PUBLISHED, make_checkpoint, published, spelling

from doge_export.checkpoint import open_checkpoint
from doge_export.checkpoint.config import parse_sizes
from doge_export.checkpoint.identify import identify

PAIRS = [(name, generation) for name, generations in PUBLISHED.items() for generation in generations]
# Millions of parameters as the model cards and recipes say them.
MILLIONS = {
    ("22M", "G1"): 22.3,
    ("76M", "G1"): 76.9,
    ("197M", "G1"): 197.2,
    ("20M", "G4b"): 13.1,
    ("60M", "G4b"): 54.6,
    ("160M", "G4b"): 152.7,
    ("320M", "G4b"): 335.8,
    ("20M-MoE", "G4b"): 17.4,
    ("120M-MoE", "G4b"): 122.7,
    ("40M", "G7"): 40.7,
}


def shapes_of(name, generation):
    model = PUBLISHED[name][generation]
    return spelling.tensors(generation, model.cdmoe, model.config)


@pytest.mark.parametrize(("pair", "millions"), MILLIONS.items(), ids=str)
def test_parameters(pair, millions):
    count = sum(math.prod(shape) for shape in shapes_of(*pair).values())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("name", "generation"), PAIRS, ids=str)
def test_every_one_is_told_for_what_it_is(name, generation):
    model = PUBLISHED[name][generation]
    sizes = parse_sizes(model.config)
    identity = identify(
        shapes_of(name, generation),
        json.loads(json.dumps(model.config)),
        heads=sizes.num_attention_heads,
        kv_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
    )
    assert identity.generation == generation
    # M6 and M7 have the same tensors: a note says so.
    assert identity.cdmoe == ("M7" if model.cdmoe == "M6" else model.cdmoe)
    assert len(identity.notes) == (model.cdmoe is not None and generation == "G4b")


def test_shards_hold_the_same_numbers_as_one_file(tmp_path, monkeypatch):
    model = published.Model(PUBLISHED["22M"]["G1"].config | {"vocab_size": 512, "num_cdmmoe_experts": 64}, "M0")
    shapes = spelling.tensors("G1", model.cdmoe, model.config)
    make_checkpoint.write(tmp_path / "one", model.config, shapes)
    monkeypatch.setattr(make_checkpoint, "SHARD", 10**6)
    make_checkpoint.write(tmp_path / "many", model.config, shapes)
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert len(many.tensors.files) > 2
    assert one.tensors.keys() == many.tensors.keys()
    assert all((one.tensors[name] == many.tensors[name]).all() for name in one.tensors)


def test_a_generation_that_it_was_not_published_in(tmp_path):
    with pytest.raises(SystemExit, match="22M was published as G1, not as G7"):
        make_checkpoint.make("22M", tmp_path / "out", "G7")
    assert not (tmp_path / "out").exists()
