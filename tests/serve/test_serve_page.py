"""The chat page at /: served as one file, and (slow) visited in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from serving import KEY, serving

from doge_export import load
from doge_export.serve.app import PAGE

TEXT = "Tell me a story about a dog."


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("doge-nano")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, parallel=2) as served:
        yield served


def test_the_page_is_one_file_and_needs_no_key(server):
    status, headers, page = server.ask(path="/", method="GET", key="none")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert page == PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<link[^>]+stylesheet|<script[^>]+src|@import|url\(", page)


@pytest.fixture(scope="module")
def visited(tmp_path_factory):
    chromium, npm = shutil.which("chromium"), shutil.which("npm")
    if chromium is None or npm is None:
        pytest.skip("chromium or npm is not installed")
    where = tmp_path_factory.mktemp("node")
    (where / "package.json").write_text('{"private": true, "type": "module"}')
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "playwright-core"]
    if subprocess.run(install, cwd=where, check=False, capture_output=True).returncode != 0:
        pytest.skip("playwright-core cannot be installed here")
    shutil.copy(Path(__file__).with_name("visit.mjs"), where)

    def visit(base, *visits):
        command = ["node", "visit.mjs", chromium, base, *map(json.dumps, visits)]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert all(one["errors"] == one["foreign"] == [] and one["overflow"] <= 0 for one in seen)
        return seen

    return visit


@pytest.mark.slow
def test_a_chat_in_the_page(server, folder, visited, monkeypatch, tmp_path):
    """Greedy, in light and dark, at the width of a phone; stopped; and a message that is too long."""
    rows = server.model.rows

    def greedy(request):
        return rows(type(request)(**{**vars(request), "settings": {**request.settings, "temperature": 0}}))

    monkeypatch.setattr(server.model, "rows", greedy)
    phone = {"size": {"width": 360, "height": 640}, "scheme": "dark", "screenshot": str(tmp_path / "phone.png")}
    light = {"screenshot": str(tmp_path / "light.png")}
    chat, dark, long = visited(
        server.base,
        {"key": KEY, "messages": [TEXT, "And then?"], **light},
        {"key": KEY, "messages": [TEXT], **phone},
        {"key": KEY, "messages": ["word " * 300]},
    )
    wanted = load(folder, threads=1).generate([{"role": "user", "content": TEXT}], temperature=0)
    assert chat["said"][0] == "This server wants a key." and chat["said"][1] == "Ready: out"
    assert chat["answers"][0] == dark["answers"][0] == wanted.text and len(chat["answers"]) == 2
    assert f"{len(wanted.token_ids)} tokens in " in dark["said"][-1]
    assert "the prompt has " in long["said"][-1] and long["answers"] == []
    server.until_idle()


@pytest.mark.slow
def test_the_stop_button_ends_the_work(server, visited, monkeypatch):
    lanes = server.model.scheduler._lanes
    step = lanes.step

    def slowly(tokens):
        time.sleep(0.05)
        return step(tokens)

    monkeypatch.setattr(lanes, "step", slowly)
    (seen,) = visited(server.base, {"key": KEY, "stop": TEXT})
    assert seen["said"][-1] == "Stopped." and len(seen["answers"]) == 1
    server.until_idle()
    assert server.metrics()['doge_answers_total{ended="cancelled"}'] == 1
