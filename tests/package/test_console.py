import io

import pytest

from doge_export import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def restore():
    yield
    console.set_quiet(False)
    console.set_verbose(False)


def test_lines_go_to_stderr(capsys):
    console.log("hello")
    console.detail("only where more is asked for")
    console.set_verbose(True)
    console.detail("more")
    console.set_quiet(True)
    console.log("silenced")
    assert capsys.readouterr() == ("", "hello\nmore\n")


def test_bar_only_on_a_terminal(capsys, monkeypatch):
    with console.progress("working", 2) as advance:
        advance()
        advance(1)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console.progress("working", 2) as advance:
        advance(2)
    assert "working" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_quiet_has_no_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console.set_quiet(True)
    with console.progress("working", 2) as advance:
        advance(2)
    assert terminal.getvalue() == ""
