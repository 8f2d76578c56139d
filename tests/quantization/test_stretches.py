"""Quality by position: where a text is judged, by which limit, and on texts as long as the folder allows."""

import dataclasses
import shutil

import numpy as np
import pytest
from random_doge import MAX_LENGTH

from doge_export import RunFailed
from doge_export.package import read_manifest
from doge_export.pipeline.quantize import quantize
from doge_export.quantization import texts as texts_module
from doge_export.quantization.advice import advice
from doge_export.quantization.quality import measure
from doge_export.quantization.reduced_precision import INT4, INT8
from doge_export.quantization.stretches import Limits, stretches
from doge_export.quantization.texts import Texts, of_all_lengths


def rows(*kls):
    return [(len(kl), np.array(kl, float), np.zeros(len(kl) - 1)) for kl in kls]


@pytest.mark.parametrize(
    ("length", "bounds"),
    [
        (40, [(0, 40)]),
        (64, [(0, 64)]),
        (80, [(0, 80)]),
        (192, [(0, 64), (64, 192)]),
        (256, [(0, 64), (64, 128), (128, 256)]),
        (300, [(0, 64), (64, 128), (128, 300)]),
        (500, [(0, 64), (64, 128), (128, 256), (256, 500)]),
        (512, [(0, 64), (64, 128), (128, 256), (256, 512)]),
    ],
)
def test_every_token_is_in_one_stretch(length, bounds):
    found = stretches(rows(np.arange(length)), Limits(1, 1))
    assert [(part.first, part.end) for part in found] == bounds
    assert [part.kl_mean for part in found] == [np.arange(*bound).mean() for bound in bounds]
    assert sum(part.positions for part in found) == length


def test_what_sets_in_late_is_not_averaged_away():
    """A mean of 0.00125 over all tokens, of 0.01 over the last."""
    kl = np.zeros(512)
    kl[448:] = 0.01
    late = stretches(rows(kl, kl), Limits(0.002, 0.002))
    assert [part.passed for part in late] == [True, True, True, False]


def test_texts_of_different_lengths_and_their_error():
    """The last stretch is reached by one text only; errors are of the means of texts."""
    found = stretches(rows(np.full(128, 1.0), np.full(128, 3.0), np.full(10, 2.0)), Limits(3, 3))
    assert [part.positions for part in found] == [64 + 64 + 10, 128]
    assert found[1].kl_mean == 2
    assert found[1].kl_standard_error == pytest.approx(1)
    assert found[1].passed
    assert not dataclasses.replace(found[1], limit=2.9).passed


@pytest.mark.parametrize(
    ("window", "max_length", "found"), [(64, 512, [0.01, 0.03, 0.03]), (512, 512, [0.01] * 3), (0, 512, [0.01] * 3)]
)
def test_the_second_limit_is_for_tokens_that_do_not_see_every_key(nano_folder, window, max_length, found):
    manifest = read_manifest(nano_folder)
    architecture = {**manifest.architecture, "keep_window_size": window}
    manifest = dataclasses.replace(manifest, architecture=architecture, max_length=max_length)
    limits = Limits.of(INT8, None, manifest)
    assert [limits.at(end) for end in (64, 128, 512)] == found
    assert Limits.of(INT8, 0.5, manifest).at(512) == 0.5


def test_texts_are_joined():
    texts = Texts("three", (np.array([0, 1, 2]), np.array([0, 3, 4, 5]), np.array([0, 6, 7])), beginning=1)
    assert [row.tolist() for row in texts.joined(5).rows] == [[0, 1, 2, 3, 4], [0, 3, 4, 5, 6]]
    assert [row.tolist() for row in texts.joined(3).rows] == [[0, 1, 2], [0, 3, 4], [0, 6, 7]]
    (repeated,) = texts.joined(12).rows
    assert repeated.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]
    assert len(Texts("one", (np.array([5]),), beginning=1).joined(4).rows[0]) == 4


def test_lengths_are_short_trained_and_exported(nano_folder):
    texts = Texts("one", (np.arange(192),) * 4)
    manifest = read_manifest(nano_folder)
    for max_length, lengths in ((100, [192]), (256, [192, 256]), (512, [192, 256, 512]), (9999, [192, 256, 4096])):
        found = of_all_lengths(texts, dataclasses.replace(manifest, max_length=max_length))
        assert [max(map(len, group.rows)) for group in found] == lengths


class Scripted:
    """Stands for a graph whose logits [1, S, 2] are of the same odds, plain from a position on."""

    output = "logits"

    def __init__(self, since=None, logit=0.0):
        self.since, self.logit = since, logit

    def run(self, ids):
        logits = np.zeros((1, len(ids), 2))
        logits[0, self.since if self.since is not None else len(ids) :, 0] = self.logit
        return [logits]


def quality_of(length, since, logit=1.0, limit=0.03):
    ids = np.zeros(length, np.int64)
    groups = [Texts("by hand", (ids[:size], ids[:size])) for size in (192, 256, length)]
    return measure(Scripted(), Scripted(since, logit), groups, Limits(0.01, limit, 64))


def test_the_stretch_of_the_largest_mean_is_reported():
    quality = quality_of(512, 300)
    kl = np.log(2) * -1 - 0.5 * (1 - 2 * np.log(1 + np.e))
    assert quality.kl_mean == pytest.approx(kl * 212 / 256)
    assert quality.failed is quality.stretches[-1]
    assert "at tokens 256-511 (limit 0.03)" in quality.summary_line()
    assert "texts of 512 tokens, mean at tokens 0-63 0, 64-127 0, 128-255 0, 256-511 0.09" in quality.summary_line()
    assert [part["end"] for part in quality.to_dict()["stretches"]] == [64, 192, 64, 128, 256, 64, 128, 256, 512]


def test_a_folder_longer_than_the_texts_is_said_to_be():
    quality = quality_of(512, 300)
    assert quality.to_dict()["judged_length"] == 512
    assert "judged up to token" not in dataclasses.replace(quality, max_length=512).summary_line()
    assert "; judged up to token 512 of 8192; " in dataclasses.replace(quality, max_length=8192).summary_line()


def test_advice_says_what_keeps_the_limit():
    limits = Limits(0.01, 0.03, 64)
    failed, kept = quality_of(512, 300), quality_of(512, 500, 0.1)
    text = advice(INT8, failed, limits, 512, None)
    assert "an export with --max-length 256 (0)" in text
    assert "beyond keep_window_size 64 keys are left out by score" in text
    assert "--max-kl 0.1 " in text
    assert "a float32 cache does not (0.099)" in advice(INT8, failed, limits, 512, failed)
    assert "--float-cache (5.9e-05)" in advice(INT8, failed, limits, 512, kept)
    assert "--precision fp16 (" in advice(INT4, failed, limits, 512, None)
    assert "--precision int8 (" in advice(INT4, failed, Limits(0.01, 0.03), 512, None)
    assert "--max-length" not in advice(INT8, quality_of(512, 0), limits, 512, None)


def test_a_graph_of_random_ids_is_judged_over_its_whole_length(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENS", {"calibration": 400, "evaluation": 400})
    monkeypatch.setattr(texts_module, "LENGTH", 20)
    folder = shutil.copytree(exported(), tmp_path / "copy")
    quality = quantize(folder, ["int8"], max_kl=1.0).qualities["onnx/model_quantized.onnx"]
    assert {part.length for part in quality.stretches} == {20, 48, MAX_LENGTH}
    assert max(part.end for part in quality.stretches) == MAX_LENGTH
    with pytest.raises(RunFailed, match=r"KL of tokens \d+-\d+ of .*a float32 cache does not.*nothing was written"):
        quantize(folder, ["int8"], max_kl=0, force=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
@pytest.mark.parametrize("name", ["doge-nano", "doge-nano-moe"])
def test_reported_and_measured_agree_over_the_whole_length(name, target, tmp_path):
    """On stories that the model did not write: at 512 tokens the limits fail, and what is reported is what is found."""
    import itertools
    from pathlib import Path

    from doge_export import export, load
    from doge_export.assets import bundled
    from doge_export.quantization.whole import WholeTexts

    folder = tmp_path / "out"
    export(bundled(name), folder, target=target, max_length=512, validate=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "samples" / "train_nano"))
        import grammar
    stories = (document for document in grammar.stream(205) if isinstance(document, str))
    ids = load(folder).tokenizer.encode("\n\n".join(itertools.islice(stories, 80)), add_special_tokens=False)
    own = Texts("stories", tuple(np.array([0, *ids[start : start + 499]]) for start in range(0, 499 * 8, 499)))
    for precision in (INT8, INT4):
        with pytest.raises(RunFailed, match="--max-length 256"):
            quantize(folder, [precision.name])
        reported = quantize(folder, [precision.name], max_kl=1.0).qualities[precision.file]
        found = measure(WholeTexts(folder / "onnx/model.onnx"), WholeTexts(folder / precision.file), own, 1.0)
        whole = sum(part.kl_mean * part.positions for part in found.stretches) / found.positions
        assert reported.kl_mean >= 0.8 * whole
