import io
import os
import sys

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


ESCAPES = "\x1b]52;c;AAAA\x07 \x1b[2J\x9b2J\r\x08\x7f tab\there\n北京 👍🏽"
SHOWN = "\\x1b]52;c;AAAA\\x07 \\x1b[2J\\x9b2J\\x0d\\x08\\x7f tab\there\n北京 👍🏽"


def test_a_terminal_shows_control_characters(monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with console.command_streams(), console.command_streams():
        sys.stdout.write(ESCAPES)
        sys.stdout.writelines([ESCAPES])
        console.log(ESCAPES)
        assert not hasattr(sys.stdout, "buffer")
        with console.own_bars():
            sys.stderr.write("\r50 %")
    assert (sys.stdout, sys.stderr) == (out, err)
    assert out.getvalue() == SHOWN * 2
    assert err.getvalue() == f"{SHOWN}\n\r50 %"


def test_a_pipe_gets_the_text_unchanged(capsys):
    with console.command_streams():
        sys.stdout.write(ESCAPES)
        console.log(ESCAPES)
    assert capsys.readouterr() == (ESCAPES, f"{ESCAPES}\n")


def test_bars_are_drawn_on_a_guarded_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console.command_streams(), console.progress("working", 1) as advance:
        advance()
    assert "working" in terminal.getvalue() and "\\x1b" not in terminal.getvalue()


def test_a_bar_lets_no_control_characters_of_a_text_through(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with console.command_streams():
        guarded = sys.stdout, sys.stderr
        with console.progress("working", 1):
            console.log("log \x9b2J\x1b]52;c;AAAA\x07 end")
            sys.stdout.write("out \x9b2J\x1b]52;c;AAAA\x07 end\n")
        assert (sys.stdout, sys.stderr) == guarded
    assert terminal.getvalue().count("\\x9b2J\\x1b]52;c;AAAA\\x07 end") == 2
    assert "\x9b" not in terminal.getvalue() and "\x1b]52" not in terminal.getvalue()


def test_what_other_languages_write_to_stderr_is_dropped_in_commands_alone(capfd):
    with console.without_native_stderr():
        os.write(2, b"kept\n")
    with console.command_streams():
        with console.without_native_stderr():
            os.write(2, b"panicked\n")
        os.write(2, b"after\n")
    assert capfd.readouterr().err == "kept\nafter\n"


def test_threads_that_hide_stderr_leave_it_as_it_was(capfd):
    one, other = console.without_native_stderr(), console.without_native_stderr()
    with console.command_streams():
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        os.write(2, b"hidden\n")
        other.__exit__(None, None, None)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
