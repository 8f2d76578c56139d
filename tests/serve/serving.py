"""A server in a thread of the tests' process, and bytes that no client's package sends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import socket
import threading
import time
import urllib.request

from doge_export.serve.app import App
from doge_export.serve.limits import Limits
from doge_export.serve.model import ServedModel
from doge_export.serve.run import Server, open_port, server_of

KEY = "secret"


@dataclasses.dataclass
class Served:
    """A running server: its address, its application, uvicorn's server."""

    base: str
    app: App
    server: Server

    @property
    def model(self):
        return self.app.model

    def client(self, key=KEY):
        import openai

        return openai.OpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0, timeout=60)

    def connect(self):
        host, port = self.base.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)

    def metrics(self):
        """Numbers by name; the text is checked to be Prometheus'."""
        request = urllib.request.Request(f"{self.base}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            text = answer.read().decode()
        assert text.endswith("\n")
        found, kinds = {}, {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                assert name not in kinds
                kinds[name] = kind
            elif not line.startswith("# HELP "):
                name, labels, value = re.fullmatch(r'(\w+)(\{(?:\w+="[^"\\\n]*",?)+\})? (\S+)', line).groups()
                family = re.sub("_(bucket|sum|count)$", "", name) if name not in kinds else name
                assert kinds[family] in ("counter", "gauge", "histogram"), line
                assert kinds[family] != "counter" or name.endswith("_total")
                assert name + (labels or "") not in found
                found[name + (labels or "")] = float(value)
        return found

    def until(self, condition, seconds=20):
        """Wait for a condition of the metrics, and return these."""
        deadline = time.monotonic() + seconds
        while not condition(found := self.metrics()):
            assert time.monotonic() < deadline, found
            time.sleep(0.01)
        return found

    def until_idle(self):
        return self.until(lambda found: found["doge_answers_running"] == found["doge_answers_waiting"] == 0)

    def ask(self, body=b"", path="/v1/completions", *, method="POST", key=KEY, length=None, headers=()):
        """Send bytes; return the status, the headers and the JSON of the answer."""
        with self.connect() as connection:
            lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Connection: close"]
            lines += [f"Content-Length: {len(body) if length is None else length}", *headers]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            return answer_of(connection)


def answer_of(connection):
    """Read an answer to its end: status, headers in small letters, JSON or text."""
    answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    is_json = headers.get("content-type") == "application/json" and content
    return int(first.split()[1]), headers, json.loads(content) if is_json else content.decode()


@contextlib.contextmanager
def serving(folder, *, parallel=4, max_queue=64, key=KEY, origins=(), limits=None, **opening):
    """Serve a folder in the body; `opening` are keywords of `load`."""
    app = App(folder.name, api_key=key, origins=origins, limits=limits or Limits())
    app.model = ServedModel(folder, parallel, max_queue, **opening)
    taken, server = open_port("127.0.0.1", 0), server_of(app)
    base = f"http://127.0.0.1:{taken.getsockname()[1]}"
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[taken])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Served(base, app, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        app.model.close()


class Gate:
    """Lets the steps of a model's lanes wait until `opened` is set; answers that another test gave up end before."""

    def __init__(self, model):
        while model.scheduler.running or model.scheduler.waiting:
            time.sleep(0.005)
        self.opened = threading.Event()
        self._lanes, self._step = model.scheduler._lanes, model.scheduler._lanes.step
        self._lanes.step = self._wait

    def _wait(self, tokens):
        self.opened.wait(20)
        return self._step(tokens)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.set()
        self._lanes.step = self._step
