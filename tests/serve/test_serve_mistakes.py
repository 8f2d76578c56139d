"""Every endpoint under every kind of wrong request: a refusal in OpenAI's form, and the server stays up."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from serving import KEY, answer_of, serving

from doge_export.serve.limits import Limits

TEXT, CHAT, VECTOR = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
GOOD = {
    TEXT: {"model": "out", "prompt": "Once", "max_tokens": 1},
    CHAT: {"model": "out", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    VECTOR: {"model": "out", "input": "a"},
}
LONE = "\ud800"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def said(*messages):
    return [{"role": "user", "content": "Hi"}, *messages]


NUMBERS = {
    "max_tokens": [0, -1, 1.5, "3", True, 2**31, 10**400, [1], {}],
    "temperature": [-1, 3, "1", True, []],
    "top_p": [-0.1, 1.1, "1", True, {}],
    "top_k": [-1, 1.5, "a", 2**40],
    "min_p": [-1, 2, "a"],
    "repetition_penalty": [0, -1, 99, "a"],
    "seed": [-1, 1.5, "a", 2**64],
    "n": [0, -1, 17, "2", 1.5, True],
    "presence_penalty": [1, "a"],
    "frequency_penalty": [0.5, []],
    "logit_bias": [{"5": "a"}, {"a": 1}, {"-1": 1}, {"9999": 1}, [1], {"5": 1e30}, {"5": True}, {"5": -101}],
    "stop": [3, [3], [""], ["a"] * 17, [None], {"a": 1}, ["a", ["b"]], LONE],
    "stream": ["yes", 1, [], {}],
    "stream_options": [5, {"include_usage": True}, {}],
    "model": ["other", 5, "", None, "x" * 10_000, LONE, ["out"]],
    "response_format": [5, {}, {"type": "xml"}, {"type": ["text"]}, {"type": "json_schema"}, schema(5)],
    "max_token": [1],
}
"""Wrong values of fields that both kinds of text have."""
WRONG = {
    TEXT: NUMBERS
    | {
        "prompt": [None, "", [], [[]], [""], ["a", ""], [1, "a"], ["a", 1], [-1], [10**6], [10**30], [1.5], [True]]
        + [[[1], [2.5]], {"a": 1}, 5, True, ["a"] * 100, [[[1]]], LONE, [LONE], "x" * 99_999, [1] * 999],
        "logprobs": [-1, 21, True, "a", 1.5],
        "best_of": [2, 0, "a"],
        "echo": [True, "x"],
        "suffix": ["a"],
        "max_completion_tokens": [1],
        "messages": [[]],
    },
    CHAT: NUMBERS
    | {
        "messages": [None, [], "hi", {}, [5], ["hi"], [[]], [{}]]
        + [[{"role": role, "content": "a"}] for role in (None, 5, ["user"], "", "robot")]
        + [
            [{"role": "user", "content": content}]
            for content in (None, 5, True, {"a": 1}, [], ["a"], LONE, "x" * 99_999)
        ]
        + [[{"role": "user", "content": [part]}] for part in ({"type": "text"}, {"type": "text", "text": 5}, {}, 5)]
        + [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]]
        + [[{"role": "user"}], [{"content": "a"}], [{"role": "assistant", "content": None}]]
        + [said({"role": "assistant", "tool_calls": calls}) for calls in (5, [5], [{}], [])]
        + [said() * 500],
        "tools": [
            "a",
            {},
            [5],
            ["a"],
            [{}],
            [[]],
            [{"type": "function"}],
            [{"type": "other", "function": {"name": "a"}}],
        ]
        + [
            [{"type": "function", "function": f}]
            for f in (5, {}, {"name": 5}, {"name": ""}, {"name": "a", "parameters": 5})
        ],
        "tool_choice": ["required", "x", 5, ["auto"], {"type": "function", "function": {"name": "f"}}],
        "logprobs": [5, "a"],
        "top_logprobs": [3],
        "max_completion_tokens": ["a", 0],
        "prompt": ["a"],
        "functions": [[]],
        "modalities": [["audio"]],
    },
    VECTOR: {
        "input": [None, "", [], [""], 5, {"a": 1}, ["a", 1], [10**7], [-1], [[]], ["a"] * 3000, LONE, "x" * 99_999]
        + [[None], [True], [1.5], [["a"]]],
        "encoding_format": ["hex", 5, []],
        "dimensions": [0, 3],
        "model": NUMBERS["model"],
        "prompt": ["a"],
    },
}
TOGETHER = [
    (TEXT, {"stream": True, "stream_options": {"include_usage": "a"}}),
    (TEXT, {"stream": True, "stream_options": {"x": 1}}),
    (CHAT, {"logprobs": True, "top_logprobs": 21}),
    (CHAT, {"logprobs": True, "top_logprobs": -1}),
    (CHAT, {"tools": [TOOL], "tool_choice": "required"}),
]
BODIES = [b"", b"null", b"5", b'"a"', b"[]", b"{", b"{}", b"\xff\xfe{", b"\x00", b"[" * 100_000, b'{"a":' * 50_000]
BODIES += [b'{"a":NaN}', b'{"a":-Infinity}', b'{"model":"out","prompt":"a","temperature":1e999}', b"model=out&prompt=a"]
BODIES += ['{"model":"out","prompt":"é"}'.encode("latin-1"), json.dumps(GOOD[TEXT]).encode("utf-16"), b'{"a":1} b']
BODIES += [b'{"model":"out","prompt":"a","seed":' + b"9" * 5000 + b"}", b'{"a":"\\x"}', b'{"model":"out","model":1}']


@pytest.fixture(scope="module")
def server(bundled_folder):
    with serving(bundled_folder("doge-nano"), limits=Limits(head_seconds=0.5, body_seconds=0.5)) as served:
        yield served


@pytest.fixture(scope="module")
def embedder(task_export):
    with serving(task_export("feature-extraction").folder) as served:
        yield served


def assert_refused(what, answer, statuses=(400,)):
    status, headers, content = answer
    assert status in statuses, (what, status, content)
    assert headers["content-type"] == "application/json", what
    error = content["error"]
    assert set(error) == {"message", "type", "code", "param"}, what
    assert re.fullmatch(r"[^\n]{5,500}", error["message"]), (what, error)
    assert "Traceback" not in error["message"] and error["type"].endswith("_error"), (what, error)


def assert_up(served, path, caplog):
    status, _, content = served.ask(json.dumps(GOOD[path]).encode(), path)
    assert status == 200, content
    assert not caplog.records  # a bug is logged


@pytest.mark.parametrize("path", [TEXT, CHAT, VECTOR])
def test_wrong_values_of_every_field(server, embedder, path, caplog):
    served = embedder if path == VECTOR else server
    changes = [{name: value} for name, values in WRONG[path].items() for value in values]
    changes += [change for where, change in TOGETHER if where == path]
    for change in changes:
        answer = served.ask(json.dumps({**GOOD[path], **change}).encode(), path)
        assert_refused(f"{path} {str(change)[:200]}", answer, (400, 404))
        assert (answer[0] == 404) == (answer[2]["error"]["code"] == "model_not_found")
    assert_up(served, path, caplog)


@pytest.mark.parametrize("path", [TEXT, CHAT, VECTOR])
def test_bodies_that_are_no_request(server, path, caplog):
    for body in BODIES:
        assert_refused(f"{path} {body[:60]}", server.ask(body, path))
    headers = ["Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=a", "Content-Encoding: gzip"]
    for header in headers:
        answer = server.ask(json.dumps(GOOD[path]).encode(), path, headers=[header])
        assert_refused(f"{path} {header}", answer, (415,))
    for key in ("", "wrong", "\xff", "secre", "a" * 10_000):
        assert_refused(f"{path} {key[:9]}", server.ask(json.dumps(GOOD[path]).encode(), path, key=key), (401,))
    assert server.ask(b"{", path, headers=["Origin: null"])[0] == 403
    assert_up(server, TEXT, caplog)


def test_models_of_another_kind(server, embedder, caplog):
    for served, path in ((server, VECTOR), (embedder, TEXT), (embedder, CHAT)):
        answer = served.ask(json.dumps(GOOD[path]).encode(), path)
        assert_refused(path, answer)
        assert answer[2]["error"]["code"] == "model_not_supported"
    assert_up(server, TEXT, caplog)


def test_wrong_methods_and_paths(server, caplog):
    paths = {TEXT: "POST", CHAT: "POST", VECTOR: "POST", "/v1/models": "GET", "/health": "GET", "/metrics": "GET"}
    for path, right in paths.items():
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"} - {right}:
            assert_refused(f"{method} {path}", server.ask(path=path, method=method), (405,))
    found = [
        "/v1",
        "/v1/",
        "/v2/x",
        "//",
        "/v1/models/other",
        "/v1/models/",
        "/v1/models/%ff",
        "/../etc",
        "/%00",
        TEXT + "/",
    ]
    for path in [*found, "/" + "a" * 10_000]:
        assert_refused(path[:40], server.ask(path=path, method="GET"), (404,))
    assert server.ask(path=TEXT, method="HEAD")[::2] == (405, "")
    assert_up(server, TEXT, caplog)


def request(body, *headers, path=TEXT):
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_connections_that_clients_rarely_make(server, caplog):
    body = json.dumps(GOOD[TEXT]).encode()
    with server.connect() as connection:  # pipelined: a good request, a wrong one, a good one
        connection.sendall(request(body) + request(b"{") + request(body, "Connection: close"))
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"400", b"200"]
    with server.connect() as connection:  # waits before it sends its body
        head = request(body, "Expect: 100-continue", "Connection: close")[: -len(body)]
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert answer_of(connection)[0] == 200
    with server.connect() as connection:  # waits, with a wrong key
        connection.sendall(head.replace(KEY.encode(), b"other"))
        assert_refused("expect", answer_of(connection), (401,))
    for sent in (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"a\r\n\r\n"):
        with server.connect() as connection:
            connection.sendall(sent)
            assert_refused(sent, answer_of(connection))
    with server.connect() as connection:  # says that it sends more than it does, and sends no more
        connection.sendall(request(body)[:-1])
        assert_refused("slow", answer_of(connection), (408,))
    assert_up(server, TEXT, caplog)


def test_what_is_unusual_but_right(server):
    rights = [(TEXT, {"stop": ""}), (TEXT, {"stop": []}), (TEXT, {"seed": 2**63}), (TEXT, {"user": "a"})]
    rights += [(TEXT, {"response_format": {"type": "text"}}), (TEXT, {"best_of": 1, "echo": False, "suffix": None})]
    rights += [
        (CHAT, {"tools": []}),
        (CHAT, {"tools": [TOOL], "tool_choice": "auto"}),
        (CHAT, {"metadata": {"a": "b"}}),
    ]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rights += [(CHAT, {"messages": said({"role": "assistant", "content": ""}, {"role": "user", "content": parts})})]
    rights += [(CHAT, {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}})]
    asked = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    rights += [(CHAT, {"messages": said(asked, {"role": "function", "name": "f", "content": "3"})})]
    rights += [(CHAT, {"messages": [{"role": "developer", "content": ""}, *said()], "max_tokens": None, "n": None})]
    rights += [(CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": None}}]})]
    rights += [(TEXT, {"stop": ["a"] * 16, "logit_bias": {"5": 100, "6": -100}})]
    for path, change in rights:
        status, _, content = server.ask(json.dumps({**GOOD[path], **change}).encode(), path)
        assert status == 200, (change, content)
    assert server.ask(b"\xef\xbb\xbf" + json.dumps(GOOD[TEXT]).encode())[0] == 200
