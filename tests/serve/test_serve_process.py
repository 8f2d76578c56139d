"""`doge-export serve` as a process: its start, and its end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from click.testing import CliRunner

from doge_export.cli import main

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

COMMAND = [sys.executable, "-m", "doge_export", "serve"]
STORY = {"model": "out", "prompt": "Once", "max_tokens": 250, "logit_bias": {"1": -100, "2": -100}, "stream": True}


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("doge-nano")


def start(folder, *options):
    """Start a server on a free port; return it and the port once /health answers, and the seconds that took."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, str(folder), "--port", "0", *options], stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "listening on" in line, line
    base = line.split()[-1]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    while time.monotonic() < began + 60:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
                assert json.load(answer) == {"status": "ok"}
                return process, int(base.rpartition(":")[-1]), time.monotonic() - began
        except OSError:
            time.sleep(0.01)
    raise AssertionError("the server does not load")


def test_sigterm_lets_running_answers_end_and_takes_no_new_ones(folder):
    process, port, _ = start(folder, "--parallel", "1")
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
    body = json.dumps(STORY).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    for connection in connections:
        connection.sendall(head.encode() + body)
    answers = [connection.recv(4096) for connection in connections[:1]]
    refused = CliRunner().invoke(main, ["serve", str(folder), "--port", str(port)])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1 and "cannot listen" in refused.stderr
    for connection in connections:
        connection.sendall(head.encode() + body)  # a request behind the first is one that has not begun
    process.send_signal(signal.SIGTERM)
    answers += [b"" for _ in connections[1:]]
    for index, connection in enumerate(connections):
        answers[index] += b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023
    assert all(answer.count(b"data: [DONE]") >= 1 for answer in answers)
    assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_ctrl_c_twice_ends_at_once(folder):
    process, port, _ = start(folder, "--parallel", "1", "--backend", "graph")
    body = json.dumps(STORY).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
        connection.sendall(head.encode() + body)  # its last byte never comes
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_folder_that_cannot_be_served_ends_the_server(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "broken")
    for graph in (tmp_path / "broken").rglob("*.onnx"):
        graph.unlink()
    mistakes = (
        ["--api-key", ""],
        ["--host", "no.x"],
        ["--request-timeout", "nan"],
        ["--threads", "0"],
    )
    for name, options in (("empty", []), ("broken", []), *(("broken", each) for each in mistakes)):
        ended = CliRunner().invoke(main, ["serve", str(tmp_path / name), "--port", "0", *options])
        assert ended.exit_code == 2, ended.stderr
        lines = [line for line in ended.stderr.splitlines() if "listening" not in line]
        assert len(lines) == 1 and "error: " in lines[0]
    for options in (["--parallel", "0"], ["--max-queue", "-1"], ["--port", "65536"], ["--request-timeout", "inf"]):
        ended = CliRunner().invoke(main, ["serve", str(folder), *options])
        assert ended.exit_code == 2 and ended.stderr.splitlines()[-1].startswith("Error: Invalid value for")


def test_the_command_serves_with_a_smaller_window(folder, monkeypatch):
    given = {}
    monkeypatch.setattr("doge_export.serve.run.serve", lambda *args, **options: given.update(options))
    assert CliRunner().invoke(main, ["serve", str(folder), "--window", "16"]).exit_code == 0
    assert given["window"] == 16
    monkeypatch.undo()
    ended = CliRunner().invoke(main, ["serve", str(folder), "--port", "0", "--window", "0"])
    assert ended.exit_code == 2 and "window" in ended.stderr.splitlines()[-1]


def test_a_smaller_window_is_every_answers(folder, native_library):
    """Each answer at once has a fork of the session's decoder."""
    from doge_export.serve.model import ServedModel

    model = ServedModel(folder, 2, 2, window=16, threads=1)
    try:
        decoder = model.session.decoder
        assert (decoder.window, decoder.fork().window) == (16, 16)
    finally:
        model.close()
