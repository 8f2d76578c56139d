"""Chat templates are somebody else's code: whatever one does is one line, within limits, and the next one works."""

from __future__ import annotations

import os
import pathlib
import signal
import threading
import time

import numpy as np
import pytest

from doge_export.errors import DogeExportError, RunFailed
from doge_export.runtime import template_engine, template_process
from doge_export.runtime.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "hello"}]
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(70) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
LAUGHS = "{% set ns = namespace(x=[0]) %}{% for i in range(70) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
LOOP = "{% for a in range(99999) %}"

HOSTILE = {
    "a long list": "{{ ([0] * 10**9) | length }}",
    "a long text": "{{ 10**10 * 'a' }}",
    "a large power": "{{ 10 ** (10 ** 10) }}",
    "a tower of products": "{% set ns = namespace(x=10**9) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a wide text": "{{ 'a'.center(10**11) }}",
    "a wide filter": "{{ 'a' | center(10**11) }}",
    "a wide format": "{{ '%100000000000d' % 1 }}",
    "another wide format": "{{ '{:100000000000d}'.format(1) }}",
    "a wide json": "{{ [[[1]]] | tojson(indent=10**11) }}",
    "a wide date": "{{ strftime_now('%999999999999d') }}{{ 1 / 0 }}",
    "a text added to itself": DOUBLED,
    "a list in itself": LAUGHS + "{{ ns.x }}",
    "a list in itself as json": LAUGHS + "{{ ns.x | tojson }}",
    "a list in itself, compared": LAUGHS + "{{ ns.x == [ns.x[0], ns.x[1] + []] }}{{ ns.x | string }}",
    "a replacement": "{{ ('a' * 9999999).replace('a', 'b' * 9999999) }}",
    "a large output": LOOP + "{{ 'a' * 9999 }}{% endfor %}",
    "a macro of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a division": "{{ 1 / 0 }}",
    "an item that is not there": "{{ messages[7].content.x.y }}",
    "no number": "{{ 'abc' + 1 }}",
    "a number of no range": "{{ range(10**9) }}",
    "an object": "{{ ''.__class__.__mro__ }}",
    "an object by a filter": "{{ ('' | attr('__class__')).mro }}",
    "an underscore on a namespace": "{% set ns = namespace(_x=1) %}",
    "an attribute of dict": "{{ dict.__init__ }}{{ dict.mro() }}",
    "a change of messages": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
    "no template": "{% if %}",
    "a deep template": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "a long number": "{{ " + "9" * 5000 + " }}",
    "escapes": "{{ raise_exception('a\x1b[2J\nb' + 'c' * 10000) }}",
}
ENDLESS = {
    "nested ranges": LOOP * 4 + "{% endfor %}" * 4,
    "a silent sum": LOOP + "{{ range(99999) | sum == 0 }}" + "{% endfor %}",
    "a loop of constants": "{% if '' %}{% endif %}" + LOOP * 3 + "{% set x = 1 %}" + "{% endfor %}" * 3,
}


@pytest.fixture(scope="module", autouse=True)
def unhurried():
    """A process that has started, so that no test waits for it."""
    assert ChatTemplate("{{ 1 }}").render(HELLO) == "1"


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_template_does_is_one_line(name, monkeypatch):
    monkeypatch.setattr(template_engine, "TIME_LIMIT", 0.7)
    with pytest.raises(DogeExportError, match="chat template") as caught:
        ChatTemplate(HOSTILE[name]).render(HELLO)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    monkeypatch.undo()
    assert ChatTemplate("{{ messages[0].content }}").render(HELLO) == "hello"


@pytest.mark.parametrize("name", ENDLESS)
def test_time_is_bounded(name, monkeypatch):
    monkeypatch.setattr(template_engine, "TIME_LIMIT", 0.3)
    template = ChatTemplate(ENDLESS[name])
    began = time.monotonic()
    with pytest.raises(DogeExportError, match=r"more than 0\.3 seconds or too much memory"):
        template.render(HELLO)
    assert time.monotonic() - began < 10


class Trap:
    def model_dump(self):
        return {"role": "user", "content": "x", "path": pathlib.Path("/nosuch"), "self": Text("y")}


class Text(str):
    def write_text(self):
        raise AssertionError("called by a template")


def test_a_template_sees_plain_data(tmp_path):
    file = tmp_path / "written"
    things = {"array": np.arange(3), "path": file, "text": Text("t"), "number": np.float32(1.5), "flag": np.bool_(0)}
    for call in (f"messages[0].array.tofile('{file}')", "messages[0].path.write_text('x')", "path.write_text('x')"):
        with pytest.raises(DogeExportError, match="cannot render"):
            ChatTemplate("{{ " + call + " }}").render([{"role": "user", **things}], **things)
    with pytest.raises(DogeExportError, match="cannot render"):
        ChatTemplate("{{ text.write_text() }}").render(HELLO, **things)
    shown = ChatTemplate("{{ array }} {{ path }} {{ text }} {{ number }} {{ flag }}").render(HELLO, **things)
    assert shown == f"<ndarray> <{type(file).__name__}> t 1.5 False"
    assert ChatTemplate("{{ messages[0].path }}{{ messages[0].self }}").render([Trap()])[-2:] == ">y"
    assert not file.exists()


def test_values_nested_in_themselves_are_one_line():
    nested: list = []
    nested.append(nested)
    deep: list = []
    for _ in range(400):
        deep = [deep]
    assert ChatTemplate("x").render(HELLO, deep=deep) == "x"
    with pytest.raises(DogeExportError, match="nested too deeply"):
        ChatTemplate("x").render(HELLO, nested=nested)
    with pytest.raises(DogeExportError, match="nested too deeply"):
        ChatTemplate("x").render([{"role": "user", "content": nested}])


def test_threads_share_the_process():
    template, wrong = ChatTemplate("{{ messages[0].content }}"), []

    def work(number):
        for turn in range(20):
            text = f"{number} {turn}" * (1 + turn)
            if template.render([{"role": "user", "content": text}]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_long_conversation_is_rendered():
    text = "é👍🏽\ud800 " * 300_000
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": text}]) == text


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interruption_leaves_no_answer_behind(monkeypatch):
    template = ChatTemplate(ENDLESS["nested ranges"])
    main = threading.get_ident()
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        template.render(HELLO)
    assert ChatTemplate("{{ 2 }}").render(HELLO) == "2"


def test_a_process_that_has_ended_is_started_again():
    process = template_process._shared.process
    process._process.kill()
    process._process.wait()
    assert ChatTemplate("{{ 3 }}").render(HELLO) == "3"
    assert template_process._shared.process is not process


def test_without_a_process_it_is_told(monkeypatch):
    monkeypatch.setattr(template_process, "_shared", template_process._Shared())
    monkeypatch.setattr("sys.executable", "/nosuch/python")
    with pytest.raises(RunFailed, match="/nosuch/python cannot be started"):
        ChatTemplate("{{ 4 }}")


def test_a_frozen_program_renders_by_itself(monkeypatch):
    monkeypatch.setattr("sys.frozen", True, raising=False)
    monkeypatch.setattr("sys.executable", "/nosuch/python")
    assert ChatTemplate("{{ messages[0].content }}").render(HELLO) == "hello"
    with pytest.raises(DogeExportError, match="too long"):
        ChatTemplate("{{ [0] * 10**9 }}").render(HELLO)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_a_process_of_its_own():
    assert ChatTemplate("{{ 5 }}").render(HELLO) == "5"
    parent = template_process._shared.process
    child = os.fork()
    if child == 0:
        found = b"?"
        try:
            found = ChatTemplate("{{ messages[0].content }}").render(HELLO).encode()
            template_process._end()
        finally:
            os._exit(0 if found == b"hello" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ChatTemplate("{{ 5 }}").render(HELLO) == "5" and template_process._shared.process is parent
