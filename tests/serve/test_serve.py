"""The server over loopback: OpenAI's own client, and bytes that no client sends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

openai = pytest.importorskip("openai", reason="the extra `test` brings openai")
pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from doge_export import load  # noqa: E402
from doge_export.serve.limits import LARGEST_BODY  # noqa: E402

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]


def start(folder, *options):
    command = [sys.executable, "-m", "doge_export", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    assert "listening on" in line, line
    base = line.split()[-1]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
                assert json.load(answer) == {"status": "ok"}
                return process, base
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not load")


def stop(process):
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("doge-nano")


@pytest.fixture(scope="module")
def server(folder):
    process, base = start(folder, "--api-key", "secret", "--parallel", "4")
    yield base
    stop(process)


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="secret", max_retries=0)


@pytest.fixture(scope="module")
def expected(folder):
    return load(folder, threads=1).generate(MESSAGES, max_new_tokens=24, temperature=0)


def test_models(client):
    assert [each.id for each in client.models.list().data] == ["out"]
    assert client.models.retrieve("out").owned_by == "doge-export"


def test_chat_is_what_generate_writes(client, expected):
    answer = client.chat.completions.create(model="out", messages=MESSAGES, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_stream_has_the_text_the_reason_and_the_usage(client, expected):
    chunks = list(
        client.chat.completions.create(
            model="out",
            messages=MESSAGES,
            max_completion_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == expected.text
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_a_seed_gives_the_same_text_beside_others(client, folder):
    session = load(folder, threads=1)
    settings = {"temperature": 1.0, "top_p": 0.9}
    wanted = [session.generate("Once upon a time", max_new_tokens=16, seed=seed, **settings).text for seed in range(8)]
    found: dict[int, str] = {}

    def ask(seed: int) -> None:
        answer = client.completions.create(model="out", prompt="Once upon a time", max_tokens=16, seed=seed, **settings)
        found[seed] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == wanted


def test_completion_with_logprobs_several_prompts_and_answers(client):
    answer = client.completions.create(
        model="out", prompt=["Once upon", "The dog"], n=2, max_tokens=3, logprobs=2, temperature=0, logit_bias={"9": -5}
    )
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    for each in answer.choices:
        assert each.logprobs.token_logprobs == [max(top.values()) for top in each.logprobs.top_logprobs]


@pytest.mark.parametrize(
    "settings, error, code",
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"messages": [{"role": "user", "content": "fox " * 2000}]}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": "many"}, openai.BadRequestError, "invalid_type"),
        ({"presence_penalty": 1}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"max_token": 3}}, openai.BadRequestError, "unknown_parameter"),
    ],
)
def test_mistakes_are_told_in_openais_form(client, settings, error, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "out", "messages": MESSAGES, **settings})
    assert caught.value.code == code
    assert "\n" not in caught.value.body["message"]


def test_a_wrong_key_a_route_that_is_not_there_and_embeddings_of_a_generator(server, client):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="out", input="a")


def raw(base, body, *, key="secret", length=None, method="POST"):
    """Send bytes and return the status and the body of the answer."""
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"{method} /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += f"Connection: close\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[]", b"1", b"{" * 100_000, b'{"model": NaN}', b"[" * 100_000, b""]
)
def test_a_body_that_is_no_request_is_refused(server, body):
    status, content = raw(server, body)
    assert status == 400
    assert content["error"]["type"] == "invalid_request_error"


def test_a_huge_body_and_a_wrong_method_are_refused(server):
    assert raw(server, b" " * (LARGEST_BODY + 1))[0] == 413
    assert raw(server, b"", method="DELETE")[0] == 405


def metrics(base):
    request = urllib.request.Request(f"{base}/metrics", headers={"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.split() for line in lines)}


def test_a_client_that_vanishes_leaves_no_work(server, client):
    for _ in range(6):
        stream = client.completions.create(
            model="out", prompt="Once", max_tokens=250, stream=True, extra_body={"logit_bias": {"1": -100}}
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (found := metrics(server))["doge_answers_running"]:
        time.sleep(0.02)
    assert found["doge_answers_running"] == found["doge_answers_waiting"] == 0


def test_a_port_in_use_is_one_line(server, folder):
    command = [sys.executable, "-m", "doge_export", "serve", str(folder), "--port", server.rsplit(":")[-1]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1 and "cannot listen" in ended.stderr
