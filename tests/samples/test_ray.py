"""The samples of Ray: what needs no Ray by default; on a local one (slow), with a worker and a job that are killed."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
import uuid
from pathlib import Path

import pytest

from doge_export import DogeExportError

SAMPLE = Path(__file__).parents[2] / "samples" / "ray"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bulk():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SAMPLE))
        import bulk

        yield bulk


def test_parts_appear_whole_and_are_found_again(bulk, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"id": {number}}}\n\n' for number in range(10)))
    assert [row["id"] for row in bulk.rows_of(file, 4, 8)] == [4, 5, 6, 7]
    assert bulk.missing_parts(tmp_path, 10, 4) == [0, 1, 2]
    bulk.write_part(tmp_path, 1, list(bulk.rows_of(file, 4, 8)))
    assert bulk.missing_parts(tmp_path, 10, 4) == [0, 2]
    assert [row["id"] for row in bulk.rows_of(bulk.part_file(tmp_path, 1))] == [4, 5, 6, 7]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["part-000001.jsonl", "rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n\n{"text": \n', "rows.jsonl cannot be read: line 3 is not JSON (Expecting value, column 9)"),
        (b'{"text": "\xff"}\n', "rows.jsonl cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_line(bulk, tmp_path, monkeypatch, content, said):
    """Before any part is computed."""
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["bulk.py", "none", str(file), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        bulk.main()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_json_does_not_know_is_written_as_text(bulk, tmp_path):
    """Parquet has times, decimals and bytes; a part that was computed must not be lost for them."""
    at = datetime.datetime(2026, 11, 29, 14, 5)
    bulk.write_part(tmp_path, 0, [{"at": at, "price": decimal.Decimal("1.50"), "raw": b"a", "half": "\ud83d"}])
    (row,) = bulk.rows_of(bulk.part_file(tmp_path, 0))
    assert row == {"at": "2026-11-29 14:05:00", "price": "1.50", "raw": "b'a'", "half": "\ud83d"}


def test_a_row_that_fails_tells_why_and_the_others_are_answered(bulk):
    def generate(texts, **settings):
        if any(len(text) > 5 for text in texts):
            raise DogeExportError("too long")
        return [types.SimpleNamespace(text=text + "!", finish_reason="eos") for text in texts]

    session = types.SimpleNamespace(task="text-generation", generate=generate)
    rows = [{"id": 1, "text": "a"}, {"id": 2, "text": "a long one"}, {"id": 3}, ["a"], 4]
    found = bulk.worked(session, rows, "text", {})
    assert found[0] == {"id": 1, "text": "a", "answer": "a!", "finish_reason": "eos"}
    assert found[1]["error"] == "DogeExportError: too long" and found[2]["error"].startswith("KeyError")
    for row, kind in ((3, "list"), (4, "int")):
        error = f"TypeError: a row is an object with fields, and this is a {kind}"
        assert found[row] == {"row": rows[row], "error": error}


@pytest.fixture(scope="module")
def ray_python():
    """A Python with Ray: this one, or that of DOGE_RAY_PYTHON."""
    python = os.environ.get("DOGE_RAY_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import ray.serve, ray.data"], capture_output=True).returncode:
        pytest.skip(
            'ray is not installed: pip install "ray[serve,data]", or name a Python that has it in DOGE_RAY_PYTHON'
        )
    return python


def started(python, script, *arguments, token=""):
    """Start a script of the sample; `token` is in the environment of all its processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DOGE_TEST_TOKEN": token}
    command = [python, str(SAMPLE / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def processes(token):
    """Processes of Ray with the token in their environment, by id, with their command lines."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"DOGE_TEST_TOKEN={token}".encode() in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def ended(token):
    """Kill what a test has left."""
    for number in processes(token):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_killed_worker_and_a_killed_job_lose_nothing(ray_python, bundled_folder, tmp_path):
    file, out, token = tmp_path / "rows.jsonl", tmp_path / "out", uuid.uuid4().hex
    texts = [f"Once upon a time {number}" for number in range(60)]
    file.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    arguments = (bundled_folder("doge-nano"), file, out, "--part-rows", 4, "--max-new-tokens", 100, "--workers", 1)

    def wait_for(condition, job):
        deadline = time.monotonic() + 300
        while not condition():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def parts():
        return list(out.glob("part-*.jsonl"))

    try:
        job = started(ray_python, "bulk.py", *arguments, token=token)
        wait_for(parts, job)
        workers = [number for number, command in processes(token).items() if "Worker" in command and "ray::" in command]
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        count = len(parts())
        wait_for(lambda: len(parts()) > count + 1, job)  # another worker goes on
        ended(token)
        job.wait()
        kept = {each: each.stat().st_mtime_ns for each in parts()}
        assert 2 < len(kept) < 15
        job = started(ray_python, "bulk.py", *arguments, token=token)
        assert job.wait(300) == 0 and f"{15 - len(kept)} parts to compute" in job.stdout.read()
        assert all(each.stat().st_mtime_ns == at for each, at in kept.items())
        rows = [json.loads(line) for each in sorted(parts()) for line in each.read_text().splitlines()]
        assert [row["id"] for row in rows] == list(range(60)) and all(row["answer"] for row in rows)
    finally:
        ended(token)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_the_deployment_answers_openais_client(ray_python, bundled_folder):
    openai = pytest.importorskip("openai", reason="the extra `test` brings openai")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    token = uuid.uuid4().hex
    try:
        server = started(ray_python, "serve_app.py", bundled_folder("doge-nano"), "--port", port, token=token)
        assert "listening on" in server.stdout.readline()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60)
        settings = {"model": "out", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**settings).choices[0].text
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **settings)) == whole
        with pytest.raises(openai.NotFoundError):
            client.completions.create(**{**settings, "model": "other"})
        server.send_signal(signal.SIGINT)
        server.wait(60)
    finally:
        ended(token)
