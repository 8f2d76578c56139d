"""Streams and locales that are not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TEXT = "na\u00efve \u4f60\u597d \U0001f600 \u2192"
PROGRAM = """
import click, sys
from doge_export.cli import main

@main.command("say")
def say():
    click.echo(sys.stdin.buffer.read().decode())
    click.echo("\\u4f60", err=True)

@main.command("fail")
def fail():
    "\\u4f60".encode("ascii")

main(sys.argv[1:])
"""


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        input=TEXT.encode(),
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "latin-1", "utf-8"])
def test_what_a_stream_cannot_show_is_replaced_and_told(encoding):
    done = start("say", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).rstrip() == TEXT.encode(encoding, "replace").decode(encoding)
    said = done.stderr.decode(encoding)
    assert "Traceback" not in said
    assert ("note: the output is " in said and "set PYTHONUTF8=1" in said) == (encoding != "utf-8")


def test_click_writes_utf_8_where_the_stream_says_ascii():
    done = start("say", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.decode().rstrip() == TEXT


def test_help_is_shown_by_any_stream():
    for encoding in ("ascii", "cp1252"):
        done = start("onnx", "--help", PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="locales of POSIX")
def test_a_locale_that_is_not_utf_8_is_named_as_the_cause():
    done = start("fail", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2, done.stderr
    assert b"the locale's encoding is ascii, not UTF-8: set PYTHONUTF8=1" in done.stderr
    assert done.stderr.count(b"\n") == 1
    done = start("inspect", "/nosuch\u00e9", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2 and b"(the locale's encoding is ascii" in done.stderr, done.stderr
    assert b"Traceback" in start("fail", PYTHONUTF8="1").stderr
