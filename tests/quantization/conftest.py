"""Folders with quantised graphs; each is made once."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from doge_export.pipeline.quantize import QuantizeResult, quantize

SAMPLE = Path(__file__).parents[2] / "samples" / "train_nano"


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, Path]:
    """Keywords of `quantize`: stories such as the bundled models were trained on, from streams that they never saw."""
    folder = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        import grammar

        for purpose, seed in (("calibration", 101), ("eval_text", 103)):
            stories = (document for document in grammar.stream(seed) if isinstance(document, str))
            text = "\n\n".join(itertools.islice(stories, 6))
            (folder / purpose).write_text(text, encoding="utf-8")
    return {"calibration": folder / "calibration", "eval_text": folder / "eval_text"}


@pytest.fixture(scope="session")
def quantised(bundled_folder, texts, tmp_path_factory):
    """A bundled model exported for a target, with int8 and int4 beside float32: the `QuantizeResult`."""
    made: dict[tuple[str, str], QuantizeResult] = {}

    def make(name: str, target: str) -> QuantizeResult:
        if (name, target) not in made:
            out = shutil.copytree(bundled_folder(name, target), tmp_path_factory.mktemp(name) / "out")
            made[name, target] = quantize(out, ["int8", "int4"], **texts)
        return made[name, target]

    return make


@pytest.fixture
def copy(nano_folder, tmp_path) -> Path:
    """A copy of the exported doge-nano, to be added to."""
    return Path(shutil.copytree(nano_folder, tmp_path / "copy"))
