"""What a client may take of the server: clients that are slow, gone, too many, or of another site."""

from __future__ import annotations

import functools
import json
import re
import socket
import threading

import pytest

openai = pytest.importorskip("openai", reason="the extra `test` brings openai")
pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from serving import KEY, Gate, answer_of, serving  # noqa: E402

from doge_export.serve.limits import Limits  # noqa: E402

STORY = {"model": "out", "prompt": "Once", "max_tokens": 200, "logit_bias": {"1": -100, "2": -100}}
"""An answer of many tokens."""
ENDLESS = json.dumps({**STORY, "stream": True}).encode()


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("doge-nano")


@pytest.fixture(scope="module")
def server(folder):
    """One answer at a time, and one that waits."""
    limits = Limits(body_seconds=0.5, head_seconds=0.5, body_bytes=100_000)
    with serving(folder, parallel=1, max_queue=1, origins=("https://friend.example",), limits=limits) as served:
        yield served


CANCELLED = 'doge_answers_total{ended="cancelled"}'


def is_full(found):
    return (found["doge_answers_running"], found["doge_answers_waiting"]) == (1, 1)


def has_more(name, before, now):
    return now.get(name, 0) > before.get(name, 0)


def begin(server, body=ENDLESS):
    """Send a request and return the connection."""
    connection = server.connect()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_full_queue_refuses_with_retry_after(server):
    with Gate(server.model) as gate, begin(server), begin(server):
        server.until(is_full)
        status, headers, content = server.ask(ENDLESS)
        assert (status, headers["retry-after"]) == (429, "1")
        assert content["error"]["type"] == "rate_limit_error" and content["error"]["code"] == "queue_full"
        with pytest.raises(openai.RateLimitError):
            server.client().completions.create(**STORY)
        gate.opened.set()
    server.until_idle()
    with pytest.raises(openai.BadRequestError, match="3 answers, expected 2 at most"):
        server.client().completions.create(**{**STORY, "n": 3})
    assert len(server.client().completions.create(**{**STORY, "n": 2, "max_tokens": 2}).choices) == 2


def test_clients_that_go_away_leave_no_work(server):
    """While their answer is written, streamed or not, and while it waits."""
    for body in (ENDLESS, json.dumps(STORY).encode()):
        with Gate(server.model) as gate:
            running = begin(server, body)
            server.until(lambda found: found["doge_answers_running"] == 1)
            waiting = begin(server, body)
            server.until(is_full)
            waiting.close()
            server.until(lambda found: (found["doge_answers_running"], found["doge_answers_waiting"]) == (1, 0))
            before = server.metrics()
            running.close()
            server.until(functools.partial(has_more, CANCELLED, before))
            gate.opened.set()
            server.until_idle()
    assert len(server.client().completions.create(**{**STORY, "max_tokens": 2}).choices) == 1


def test_an_answer_that_takes_too_long_ends(folder):
    with serving(folder, parallel=1, limits=Limits(request_seconds=0.3)) as served:
        with Gate(served.model) as gate:
            with pytest.raises(openai.InternalServerError) as caught:
                served.client().completions.create(**STORY)
            assert (caught.value.status_code, caught.value.code) == (504, "timeout")
            with pytest.raises(openai.APIError, match=r"more than 0.3 s"):
                list(served.client().completions.create(**STORY, stream=True))
            gate.opened.set()
        served.until_idle()


def test_a_slow_head_and_a_slow_body_are_refused(server):
    for sent in (b"", b"POST /v1/completions HTTP/1.1\r\nHost:"):
        with server.connect() as connection:
            connection.sendall(sent)
            status, _, content = answer_of(connection)
            assert (status, content["error"]["code"]) == (408, "timeout")
    with server.connect() as connection:  # a second request on a connection is as slow
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"ok" not in connection.recv(65536):
            pass
        connection.sendall(b"GET")
        assert b"HTTP/1.1 408" in b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, content = server.ask(b"{", length=100)
    assert (status, content["error"]["code"]) == (408, "timeout")


def test_a_client_that_takes_nothing_is_cut_off(server):
    """Its stream fills all buffers, then nothing is written for it any more."""
    with Gate(server.model) as gate:
        connection = begin(server)
        server.until(lambda found: found["doge_answers_running"] == 1)
        for each in server.server.server_state.connections:
            if each.scope is not None and each.scope["method"] == "POST":
                each.flow.pause_writing()
        gate.opened.set()
        server.until_idle()
        connection.settimeout(10)
        with pytest.raises(ConnectionError):
            while connection.recv(65536):
                pass
            raise ConnectionAbortedError  # an end is as good
        connection.close()


@pytest.mark.parametrize("key", ["wrong", KEY])
def test_a_huge_body_is_refused_to_a_client_that_sends_all_of_it(server, key):
    """The client sees the refusal, not a broken connection, and its next request is answered on the same one."""
    client = server.client(key)
    error, status = (openai.APIStatusError, 413) if key == KEY else (openai.AuthenticationError, 401)
    for _ in range(3):
        with pytest.raises(error) as caught:
            client.completions.create(model="out", prompt="a" * 1_000_000)
        assert caught.value.status_code == status
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", body={"a": "a" * 1_000_000}, cast_to=object)


def test_a_chunked_body_is_counted(server):
    with server.connect() as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        )
        for _ in range(11):
            connection.sendall(b"2710\r\n" + b"a" * 10_000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert answer_of(connection)[0] == 413


def test_what_is_no_http_is_refused(server):
    for sent in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /" + b"a" * 100_000, b"GET / HTTP/9\r\n\r\n"):
        with server.connect() as connection:
            connection.sendall(sent)
            status, _, content = answer_of(connection)
            assert (status, content["error"]["code"]) == (400, "invalid_http")


def test_more_connections_than_allowed_are_refused(folder):
    with serving(folder, parallel=1, limits=Limits(connections=2)) as served:
        with served.connect(), served.connect(), served.connect() as third:
            status, _, content = answer_of(third)
            assert (status, content["error"]["code"]) == (503, "overloaded")
        served.until_idle()


def test_pages_of_allowed_sites_may_ask_and_others_not(server):
    body = json.dumps({"model": "out", "prompt": "Once", "max_tokens": 1}).encode()
    for origin, expected in (("https://friend.example", 200), ("http://x", 200), ("https://other.example", 403)):
        status, headers, _ = server.ask(body, headers=[f"Origin: {origin}"])
        assert status == expected
        assert headers.get("access-control-allow-origin") == (origin if "friend" in origin else None)
    asked = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type"]
    status, headers, _ = server.ask(method="OPTIONS", headers=["Origin: https://friend.example", *asked])
    assert status == 200 and "authorization" in headers["access-control-allow-headers"].lower()
    assert server.ask(method="OPTIONS", headers=["Origin: https://other.example", *asked])[0] == 400
    status, headers, _ = server.ask(b"{", headers=["Origin: https://friend.example"])
    assert (status, headers["access-control-allow-origin"]) == (400, "https://friend.example")


def test_many_mistakes_at_once_leave_the_server_up(server):
    bodies = [b"{", b'{"model": "out", "prompt": ["a", 1]}', b'{"model": "out", "prompt": "\\ud800"}']
    bodies += [b'{"model": "out", "prompt": "a", "logit_bias": {"5": 1e999}}', b'{"model": "out", "prompt": [[[1]]]}']
    bodies += [b'{"model": "out", "prompt": "a", "stop": [[]]}', b'{"model": "out", "prompt": [99999999999999999999]}']
    bodies += [b'{"model": "out", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", b'{"model": ["out"], "prompt": "a"}']
    bodies += [b'{"model": "out", "prompt": "a", "temperature": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}"]
    bodies += [b'{"model": "out", "prompt": "a", "stop": ["\\udfff"]}', b'{"model": "out", "prompt": {"a": 1}}']
    found = {}

    def ask(index):
        found[index] = server.ask(bodies[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (status, _, content) in sorted(found.items()):
        assert status == 400, (bodies[index][:90], content)
        assert set(content["error"]) == {"message", "type", "code", "param"}
        assert re.fullmatch(r"[^\n]{5,400}", content["error"]["message"])


def test_a_bug_is_told_as_one_and_the_next_request_is_answered(server, monkeypatch, caplog):
    def broken(request):
        raise ZeroDivisionError("inside")

    client = server.client()
    with monkeypatch.context() as patch:
        patch.setattr(server.model, "rows", broken)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**STORY)
    assert "inside" not in caught.value.body["message"] and "inside" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(server.model.scheduler._lanes, "begin", broken)
        with pytest.raises(openai.InternalServerError):
            client.completions.create(**STORY)
    assert client.completions.create(**{**STORY, "max_tokens": 1}).usage.completion_tokens == 1


def test_a_scheduler_that_fails_is_told(folder):
    def broken(tokens):
        raise ZeroDivisionError

    with serving(folder, parallel=1) as served:
        served.model.scheduler._lanes.step = broken
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                served.client().completions.create(**STORY)
        assert served.ask(path="/health", method="GET")[::2] == (500, {"status": "failed"})


def test_half_a_goodbye_counts_as_one(server):
    before = server.metrics()
    with Gate(server.model) as gate, begin(server) as connection:
        server.until(lambda found: found["doge_answers_running"] == 1)
        connection.shutdown(socket.SHUT_WR)
        server.until(functools.partial(has_more, CANCELLED, before))
        gate.opened.set()
        server.until_idle()
