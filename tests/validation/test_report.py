import dataclasses
import functools
import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.text import Text
from random_doge import MAX_LENGTH
from validation_subjects import ModelSession, TorchSession

from doge_export.errors import DogeExportError
from doge_export.validation import CheckResult, Verdict, plots, validate
from doge_export.validation.comparison import compare, concatenate
from doge_export.validation.report import render_html, write_report
from doge_export.validation.tolerance import BFLOAT16

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects the tags and the visible text, and insists that every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def verdict_of(checkpoint):
    """Verdicts by name; each is made once."""

    def nan(model):
        model.model.layers[1].mlp.down_proj.weight[5, 5] = float("nan")

    sessions = {
        "passed": lambda: TorchSession(checkpoint(), max_length=20),
        "failed": lambda: TorchSession(checkpoint(), max_length=MAX_LENGTH, causal=False),
        "nan": lambda: TorchSession(checkpoint(), max_length=MAX_LENGTH, spoil=nan),
        # Rounds differently, as an export does.
        "rounded": lambda: ModelSession(checkpoint(), max_length=MAX_LENGTH),
    }
    return functools.cache(lambda name: validate("folder", session=sessions[name]()))


@pytest.fixture(scope="module")
def drawn(verdict_of):
    """The page of a verdict by its name, and the texts of its figures; each is drawn once."""

    def draw(name):
        with pytest.MonkeyPatch.context() as monkeypatch:
            texts = record_texts(monkeypatch)
            return render_html(verdict_of(name)), texts

    return functools.cache(draw)


def record_texts(monkeypatch):
    """The texts that are drawn from now on, by figure: what each says, and its box."""
    figures, draw = {}, Text.draw

    def recorded(self, renderer, *args, **kwargs):
        draw(self, renderer, *args, **kwargs)
        if self.get_visible() and self.get_text():
            box = Text.get_window_extent(self, renderer)
            figures.setdefault(self.get_figure(root=True), {})[self] = (self.get_text(), box)

    monkeypatch.setattr(Text, "draw", recorded)
    return figures


@pytest.mark.parametrize(("name", "word"), [("passed", "PASSED"), ("failed", "FAILED"), ("nan", "FAILED")])
def test_report_says_the_verdict_first_and_shows_every_check(verdict_of, drawn, name, word):
    verdict = verdict_of(name)
    html, _ = drawn(name)
    page = Page(html)
    text = " ".join("".join(page.text).split())
    assert text.index(word) < text.index("Checkpoint")
    assert page.tags[[tag for tag, _ in page.tags].index("h1")] and f"<h1>{word}</h1>" in html
    for check in verdict.checks:
        assert f"{check.name} {check.status.upper()}" in text
        assert " ".join(check.note.split()) in text
    drawn = sum(bool(check.metrics.get("positions")) for check in verdict.checks)
    assert sum(tag == "svg" for tag, _ in page.tags) == drawn + 1
    assert f"judged up to token {verdict.judged_length} of {verdict.subject['max_length']}" in text
    assert verdict.reach in verdict.render_text() and verdict.to_dict()["judged_length"] == verdict.judged_length
    assert 20 <= verdict.judged_length <= verdict.subject["max_length"]
    for fact in ("transformers", "eager", "float32", verdict.reference["version"]):
        assert fact in text


def test_report_needs_nothing_outside_itself(drawn):
    html, _ = drawn("failed")
    tags = Page(html).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_of_several_plots_do_not_meet(drawn):
    html, _ = drawn("failed")
    shared = re.findall(r'<(?:clipPath|path) id="([^"]+)"', html)
    assert len(shared) == len(set(shared))


def test_text_of_others_is_escaped():
    check = CheckResult("<b>name", "a < b & c", None, note="<script>")
    html = render_html(Verdict((check,), {"model": "<img src=x>"}, {}))
    assert not {"script", "img", "b"} & {tag for tag, _ in Page(html).tags}


def test_same_verdict_same_report_written_at_once_or_not_at_all(drawn, verdict_of, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    write_report(verdict_of("passed"), path)
    assert path.read_text(encoding="utf-8") == drawn("passed")[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    verdict = Verdict((CheckResult("name", "description", None),), {}, {})
    with pytest.raises(DogeExportError, match=r"cannot be written") as raised:
        write_report(verdict, tmp_path / "missing" / "report.html")
    assert "\n" not in str(raised.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DogeExportError, match=r"cannot be written"):
        write_report(verdict, tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def drawn_texts(monkeypatch):
    return record_texts(monkeypatch)


def assert_readable(figures, count):
    assert len(figures) == count
    for figure, texts in figures.items():
        for said, box in texts.values():
            assert box.x0 >= 0 and box.y0 >= 0, said
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, said
        for (said, box), (other, other_box) in itertools.combinations(texts.values(), 2):
            assert not box.overlaps(other_box), (said, other)


@pytest.mark.parametrize("name", ["failed", "nan", "rounded"])
def test_no_text_of_a_plot_is_cut_off_or_overlaps_another(drawn, name):
    html, drawn_texts = drawn(name)
    assert_readable(drawn_texts, html.count("<svg"))
    wanted = {"Difference at each position", "Largest difference of each check", "position in the sequence"}
    assert wanted <= {said for texts in drawn_texts.values() for said, _ in texts.values()}


COMPARED = [(0.0, 64), (0.0, 1), (1e-13, 2), (1e-6, 64), (1e-6, 2100), (3e-2, 96), (1e4, 1), (1e4, 64)]


@pytest.mark.parametrize(
    ("noise", "length", "ranked"),
    [
        *((noise, length, True) for noise, length in COMPARED),
        # The same panels but one.
        *(pytest.param(*each, False, marks=() if each in COMPARED[5:7] else pytest.mark.slow) for each in COMPARED),
    ],
)
def test_plots_are_readable_whatever_is_compared(drawn_texts, noise, length, ranked):
    random = np.random.default_rng(0)
    ids = np.arange(length)[None]

    def run(label, lost=()):
        reference = random.normal(size=(1, length, 50))
        reference[:, ::7, 1] = reference[:, ::7, 0] = 5  # near ties
        subject = reference + noise * random.normal(size=reference.shape)
        subject[:, lost] = np.nan
        return compare(reference, subject, np.ones_like(ids, bool), ids, label=label, ranked=ranked, tolerance=BFLOAT16)

    runs = [run("one call"), run("prefill and steps", lost=[-1]), run("step by step"), run("teacher-forced")]
    comparison = concatenate(runs)
    plots.by_position("all", comparison)
    plots.by_position("one run", runs[0])
    check = CheckResult("beyond keep_window_size", "", False, comparison.metrics(), comparison=comparison)
    finite = dataclasses.replace(check, metrics=runs[0].metrics(), comparison=runs[0], passed=runs[0].passed)
    plots.overview([check, finite])
    assert_readable(drawn_texts, 3)


def test_a_plot_of_nothing_is_readable(drawn_texts):
    plots.overview([])
    assert_readable(drawn_texts, 1)


def test_unranked_report_has_no_columns_of_ranks(verdict_of):
    verdict = verdict_of("rounded")
    (check, *_) = verdict.checks
    comparison = dataclasses.replace(check.comparison, ranked=False)
    bare = dataclasses.replace(check, comparison=comparison, metrics=comparison.metrics())
    with_ranks, without = (
        "".join(Page(render_html(dataclasses.replace(verdict, checks=(shown,)))).text) for shown in (check, bare)
    )
    for word in ("argmax", "near ties", "KL"):
        assert word in with_ranks and word not in without


@pytest.mark.parametrize("name", ["nan", "rounded"])
def test_every_row_of_the_table_fills_every_column(drawn, name):
    html, _ = drawn(name)
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    head = html[html.index("<thead>") : html.index("</thead>")]
    columns = head.count("<th ") - head.count("colspan")
    assert {row.count("<td") for row in table.split("<tr>")[1:]} == {columns}
