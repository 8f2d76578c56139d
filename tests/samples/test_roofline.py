import math
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "benchmark"


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(SAMPLE))
    import roofline

    yield roofline
    for script in SAMPLE.glob("*.py"):
        sys.modules.pop(script.stem, None)


def test_a_dense_model_reads_every_weight_once(roofline):
    model = roofline.PUBLISHED["20M"]["G7"]
    shapes = roofline.tensors("G7", model.cdmoe, model.config).values()
    assert roofline.weight_bytes(model, 2) == 2 * sum(map(math.prod, shapes))


def test_a_mixture_of_experts_reads_the_picked_rows(roofline):
    """The same trunk, and in each of 8 layers a router of 2 * 32 keys and 16 rows of two tables."""
    dense, routed = (roofline.weight_bytes(roofline.PUBLISHED[name]["G7"], 1) for name in ("20M", "20M-MoE"))
    assert routed - dense == 8 * 256 * (2 * 32 + 2 * 16)


def test_the_cache(roofline):
    """8 layers of one key/value head of 128: keys, values and a score."""
    assert roofline.cache_bytes(roofline.PUBLISHED["20M"]["G7"], 10, 2) == 8 * 10 * (2 * 128 * 2 + 4)


def test_all_experts_are_read_in_the_long_run(roofline):
    """Of 1024 rows a table, 16 a token."""
    model = roofline.PUBLISHED["20M-MoE"]["G7"]
    assert roofline.resident_bytes(model, 1) - roofline.weight_bytes(model, 1) == 8 * 2 * 256 * (1024 - 16)
    dense = roofline.PUBLISHED["20M"]["G7"]
    assert roofline.resident_bytes(dense, 2) == roofline.weight_bytes(dense, 2)


def test_the_page_says_what_it_prints():
    command = [sys.executable, SAMPLE / "roofline.py"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    page = (SAMPLE.parents[1] / "doge_export/trt/README.md").read_text(encoding="utf-8")
    assert sum(line in page for line in lines[2:]) == 6
