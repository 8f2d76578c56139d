"""Lets many clients stream answers from a server of OpenAI's API, and tells how long they waited.

python load.py --clients 8 --requests 200 --max-tokens 64; the clients are plain sockets, so that they take little of
the cores that the server computes on. `--vanish N` lets N clients go away in the middle of their answer first.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

PROMPT = "Once upon a time there was number {}"


@dataclasses.dataclass
class Answer:
    """What a client saw of its answer.

    Attributes:
        first: seconds to the first token.
        whole: seconds to the end.
        tokens: tokens, as the server counts them; events with text where it counts none.
        error: what went wrong; empty for nothing.
    """

    first: float = 0.0
    whole: float = 0.0
    tokens: int = 0
    error: str = ""


class Stream(asyncio.Protocol):
    """A connection that sends a request and keeps what comes; it is read once it has come, to take little of the cores.

    Args:
        request: the bytes of the request.
        vanish_after: events after which the connection is cut.

    Attributes:
        content: what came.
        first: time.perf_counter() of the first event.
        ended: done at the end of the stream.
        has_vanished: the connection was cut from this side.
    """

    def __init__(self, request: bytes, vanish_after: int | None) -> None:
        self._request, self._vanish_after, self._events = request, vanish_after, 0
        self.content, self.first, self.has_vanished = bytearray(), 0.0, False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the request."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep a part of the answer."""
        self._events += data.count(b"data: ")
        if self._events and not self.first:
            self.first = time.perf_counter()
        self.content += data
        if self._vanish_after is not None and self._events >= self._vanish_after:
            self.has_vanished = True
            self._transport.abort()
        elif self.content.endswith((b"data: [DONE]\n\n", b"0\r\n\r\n"), -32):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        if not self.ended.done():
            self.ended.set_result(None)


def outcome(content: bytes) -> tuple[int, str]:
    """Return the tokens of an answer that has come, and what went wrong with it."""
    lines = content.split(b"\n")
    if b" 200 " not in lines[0]:
        return 0, lines[0].decode(errors="replace").strip() or "no answer"
    events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return 0, "the stream was cut"
    tokens = 0
    for event in map(json.loads, events[:-1]):
        if "error" in event:
            return 0, json.dumps(event["error"])
        if event.get("usage"):
            return event["usage"]["completion_tokens"], ""
        tokens += bool(event["choices"] and event["choices"][0]["text"])
    return tokens, "" if tokens else "an answer without tokens"


class Load:
    """Clients of one server.

    Args:
        arguments: the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._address = urlsplit(arguments.url)
        self._key = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
        self._url = arguments.url
        self._max_tokens, self._prompt = arguments.max_tokens, arguments.prompt
        self._model = json.loads(self.get("/v1/models"))["data"][0]["id"]

    def get(self, path: str) -> str:
        """Return what the server says."""
        with urllib.request.urlopen(urllib.request.Request(self._url + path, headers=self._key), timeout=30) as answer:
            return answer.read().decode()

    def number(self, name: str) -> float:
        """Return one of the server's numbers; 0 for one that it does not have."""
        try:
            lines = self.get("/metrics").splitlines()
        except OSError:  # other servers have no metrics
            return 0.0
        return next((float(line.split()[1]) for line in lines if line.split(" ")[0] == name), 0.0)

    async def ask(self, number: int, vanish_after: int | None = None) -> Answer:
        """Stream one answer; `vanish_after` tokens the client closes the connection."""
        body: dict[str, Any] = {"model": self._model, "prompt": self._prompt.replace("{}", str(number)), "stream": True}
        body |= {"max_tokens": self._max_tokens, "stream_options": {"include_usage": True}, "temperature": 0}
        content = json.dumps(body).encode()
        head = {"Host": self._address.netloc, "Content-Type": "application/json", "Content-Length": str(len(content))}
        head |= {"Connection": "close", **self._key}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        answer, began = Answer(), time.perf_counter()
        try:
            address = (self._address.hostname, self._address.port or 80)
            stream = Stream(f"POST /v1/completions HTTP/1.1\r\n{lines}\r\n".encode() + content, vanish_after)
            await asyncio.get_running_loop().create_connection(lambda: stream, *address)
            await stream.ended
            answer.first = stream.first - began
            answer.tokens, answer.error = (1, "") if stream.has_vanished else outcome(stream.content)
        except (OSError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.whole = time.perf_counter() - began
        return answer

    async def run(self, clients: int, requests: int, vanish: bool = False) -> tuple[list[Answer], float]:
        """Let `clients` at a time ask until `requests` are asked; return the answers and the seconds of all."""
        numbers, answers = iter(range(requests)), []

        async def client() -> None:
            for number in numbers:
                answers.append(await self.ask(number, 1 + number % 8 if vanish else None))

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return answers, time.perf_counter() - began

    async def until_idle(self) -> float:
        """Wait until the server computes nothing; return the seconds."""
        began = time.perf_counter()
        while self.number("doge_answers_running") or self.number("doge_answers_waiting"):
            await asyncio.sleep(0.005)
        return time.perf_counter() - began


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0.0


def report(answers: list[Answer], seconds: float, clients: int) -> dict[str, Any]:
    """Return the numbers of a run; times in milliseconds."""
    good = [answer for answer in answers if not answer.error]
    numbers: dict[str, Any] = {"clients": clients, "requests": len(answers), "errors": len(answers) - len(good)}
    numbers["tokens_per_second"] = round(sum(answer.tokens for answer in good) / seconds, 1)
    for name, values in (("first", [each.first for each in good]), ("whole", [each.whole for each in good])):
        numbers |= {f"{name}_p{percent}_ms": round(1e3 * percentile(values, percent), 1) for percent in (50, 95)}
    return numbers


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[8], help="clients at a time; several are run in turn"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests of each run")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt", default=PROMPT, help="{} is the number of the request; [%(default)s]")
    parser.add_argument("--vanish", type=int, default=0, help="clients that go away mid-stream, before the runs")
    arguments = parser.parse_args()
    try:
        load = Load(arguments)
    except OSError as error:
        raise SystemExit(f"no server answers at {arguments.url}: {error}") from None
    asyncio.run(load.run(1, 2))  # what is made at the first answer is made
    failed = 0
    if arguments.vanish:
        before = load.number("process_resident_memory_bytes")
        vanished, seconds = asyncio.run(load.run(max(arguments.clients), arguments.vanish, vanish=True))
        idle = asyncio.run(load.until_idle())
        after = load.number("process_resident_memory_bytes")
        errors = [answer.error for answer in vanished if answer.error]
        failed += len(errors)
        print(
            f"{len(vanished)} clients vanished in {seconds:.1f} s, {len(errors)} errors; nothing runs or waits "
            f"{1e3 * idle:.0f} ms later; memory {before / 2**20:.1f} -> {after / 2**20:.1f} MiB"
        )
    for clients in arguments.clients:
        answers, seconds = asyncio.run(load.run(clients, arguments.requests))
        numbers = report(answers, seconds, clients)
        print(json.dumps(numbers))
        failed += numbers["errors"]
        for error in sorted({answer.error for answer in answers if answer.error})[:5]:
            print(f"  {error[:200]}")
    memory = load.number("process_resident_memory_bytes")
    if memory:
        print(f"memory {memory / 2**20:.1f} MiB")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
