import re
from html.parser import HTMLParser

import pytest
from random_doge import MAX_LENGTH
from validation_subjects import TorchSession

from doge_export.errors import DogeExportError
from doge_export.validation import CheckResult, Verdict, validate
from doge_export.validation.report import render_html, write_report

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
def verdicts(checkpoint):
    def nan(model):
        model.model.layers[1].mlp.down_proj.weight[5, 5] = float("nan")

    sessions = {
        "passed": TorchSession(checkpoint(), max_length=20),
        "failed": TorchSession(checkpoint(), max_length=MAX_LENGTH, causal=False),
        "nan": TorchSession(checkpoint(), max_length=MAX_LENGTH, spoil=nan),
    }
    return {name: validate("folder", session=session) for name, session in sessions.items()}


@pytest.mark.parametrize(("name", "word"), [("passed", "PASSED"), ("failed", "FAILED"), ("nan", "FAILED")])
def test_report_says_the_verdict_first_and_shows_every_check(verdicts, name, word):
    verdict = verdicts[name]
    page = Page(render_html(verdict))
    text = " ".join("".join(page.text).split())
    assert text.index(word) < text.index("Checkpoint")
    assert page.tags[[tag for tag, _ in page.tags].index("h1")] and f"<h1>{word}</h1>" in render_html(verdict)
    for check in verdict.checks:
        assert f"{check.name} {check.status.upper()}" in text
        assert " ".join(check.note.split()) in text
    drawn = sum(bool(check.metrics.get("positions")) for check in verdict.checks)
    assert sum(tag == "svg" for tag, _ in page.tags) == drawn + 1
    for fact in ("transformers", "eager", "float32", verdict.reference["version"]):
        assert fact in text


def test_report_needs_nothing_outside_itself(verdicts):
    html = render_html(verdicts["failed"])
    tags = Page(html).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_of_several_plots_do_not_meet(verdicts):
    html = render_html(verdicts["failed"])
    shared = re.findall(r'<(?:clipPath|path) id="([^"]+)"', html)
    assert len(shared) == len(set(shared))


def test_same_verdict_same_report(verdicts):
    assert render_html(verdicts["passed"]) == render_html(verdicts["passed"])


def test_text_of_others_is_escaped():
    check = CheckResult("<b>name", "a < b & c", None, note="<script>")
    html = render_html(Verdict((check,), {"model": "<img src=x>"}, {}))
    assert not {"script", "img", "b"} & {tag for tag, _ in Page(html).tags}


def test_report_is_written_at_once_or_not_at_all(verdicts, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    write_report(verdicts["passed"], path)
    assert path.read_text(encoding="utf-8") == render_html(verdicts["passed"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_is_one_line(verdicts, tmp_path):
    with pytest.raises(DogeExportError, match=r"cannot be written") as raised:
        write_report(verdicts["passed"], tmp_path / "missing" / "report.html")
    assert "\n" not in str(raised.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DogeExportError, match=r"cannot be written"):
        write_report(verdicts["passed"], tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
