"""The application: routes of OpenAI's API over one model, which may still be loading."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from doge_export.serve.api_error import ApiError, api_error
from doge_export.serve.bodies import Bodies, dumped
from doge_export.serve.fields import Fields
from doge_export.serve.requests import Request, chat_request, completion_request

if TYPE_CHECKING:
    from doge_export.serve.model import ServedModel

LARGEST_BODY = 4 * 2**20
"""Bytes of a request."""
BODY_SECONDS = 30.0
"""Seconds in which a request's body must have come, and in which a client must take a chunk."""

_log = logging.getLogger("doge_export.serve")


class App:
    """The routes and what they share.

    Args:
        name: name of the model.
        api_key: key that clients must have; None for none.
        origins: web pages that may use the server.
        request_timeout: most seconds of a request.

    Attributes:
        model: the model, once it is loaded.
        asgi: what the HTTP server runs.
    """

    def __init__(
        self, name: str, *, api_key: str | None = None, origins: tuple[str, ...] = (), request_timeout: float = 600
    ) -> None:
        self.name = name
        self._key, self._timeout = api_key, request_timeout
        self.model: ServedModel | None = None
        self._started = time.time()
        self._counts: dict[str, int] = {}
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
        ]
        cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
        handlers: Any = {ApiError: self._refused, HTTPException: self._refused, Exception: self._refused}
        self.asgi = Starlette(routes=routes, middleware=cors if origins else [], exception_handlers=handlers)

    async def _refused(self, http: Http, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            what = {404: f"there is no {http.url.path}", 405: f"{http.url.path} does not take {http.method}"}
            headers = dict(error.headers or {})
            error = ApiError(error.status_code, what.get(error.status_code, str(error.detail)), headers=headers)
        elif api_error(error).status == 500:
            _log.error("a request failed: %s", error, exc_info=error)
        told = api_error(error)
        self._count(f'doge_errors_total{{status="{told.status}"}}')
        return _json(told.body(), told.status, told.headers)

    def _count(self, name: str, more: int = 1) -> None:
        self._counts[name] = self._counts.get(name, 0) + more

    def _check_key(self, http: Http) -> None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self._key is not None and not hmac.compare_digest(given, self._key.encode()):
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")

    def _loaded(self) -> ServedModel:
        if self.model is None:
            raise ApiError(503, "the model is loading: try again", "loading", headers={"Retry-After": "1"})
        return self.model

    async def _health(self, http: Http) -> Response:
        return _json({"status": "loading"}, 503) if self.model is None else _json({"status": "ok"})

    async def _metrics(self, http: Http) -> Response:
        self._check_key(http)
        scheduler = None if self.model is None else self.model.scheduler
        numbers: dict[str, Any] = {"doge_uptime_seconds": round(time.time() - self._started, 3)}
        if scheduler is not None:
            numbers |= {"doge_answers_running": scheduler.running, "doge_answers_waiting": scheduler.waiting}
        numbers |= dict(sorted(self._counts.items()))
        return PlainTextResponse("".join(f"{name} {value}\n" for name, value in numbers.items()))

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": int(self._started), "owned_by": "doge-export"}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"there is no model {name[:80]!r} here, only {self.name!r}", "model_not_found", "model")

    async def _models(self, http: Http) -> Response:
        self._check_key(http)
        return _json({"object": "list", "data": [self._card()]})

    async def _one_model(self, http: Http) -> Response:
        self._check_key(http)
        self._check_name(http.path_params["name"])
        return _json(self._card())

    async def _body(self, http: Http) -> Any:
        self._check_key(http)
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in http.stream():
                    content += part
                    if len(content) > LARGEST_BODY:
                        raise ApiError(
                            413, f"the body has more than {LARGEST_BODY} bytes", headers={"Connection": "close"}
                        )
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
        try:
            return json.loads(bytes(content), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", "invalid_json") from None

    async def _chat(self, http: Http) -> Response:
        return await self._write(http, chat_request(await self._body(http)))

    async def _completions(self, http: Http) -> Response:
        return await self._write(http, completion_request(await self._body(http)))

    async def _write(self, http: Http, request: Request) -> Response:
        from doge_export.serve.model import Answers

        self._check_name(request.model)
        model = self._loaded()
        self._count("doge_requests_total")
        rows = await run_in_threadpool(model.rows, request)
        answers, bodies = Answers(model, rows, request.logprobs), Bodies(request)
        if request.stream:
            return Streamed(self, answers, bodies, request)
        records: list[list[Any]] = [[] for _ in rows]
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            async with asyncio.timeout(self._timeout):
                while any(row.finish_reason is None for row in rows):
                    wanted = asyncio.ensure_future(answers.next())
                    await asyncio.wait([wanted, gone], return_when=asyncio.FIRST_COMPLETED)
                    if not wanted.done():
                        wanted.cancel()
                        raise ClientDisconnect
                    index, _, record = wanted.result()
                    records[index].append(record)
        except TimeoutError:
            raise ApiError(504, f"the answer took more than {self._timeout:g} s", "timeout") from None
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            gone.cancel()
            answers.cancel()
            self._count("doge_tokens_written_total", sum(len(row.token_ids) for row in rows))
        return _json(bodies.whole(rows, records, request.n, request.logprobs is not None))

    async def _embeddings(self, http: Http) -> Response:
        from doge_export.runtime.feature_session import FeatureSession
        from doge_export.runtime.prompts import text_rows

        fields = Fields(await self._body(http))
        name = fields.of(str, "model", "the name of a model") or ""
        texts = fields.of((str, list), "input", "a text, token ids, or a list of those")
        encoding = fields.any("encoding_format") or "float"
        fields.only("encoding_format", "float", "base64")
        fields.only("dimensions")
        fields.finish()
        self._check_name(name)
        session = self._loaded().session
        if not isinstance(session, FeatureSession):
            raise ApiError(
                400, "this model writes text: export with --task feature-extraction", "model_not_supported", "model"
            )
        if not texts:
            raise ApiError(400, "input is missing or empty", "invalid_value", "input")
        vocabulary = session.manifest.architecture["vocab_size"]

        def embed() -> tuple[Any, int]:
            rows = text_rows(texts, session.tokenizer, vocabulary, max_length=session.max_length, truncate=False)
            return session.embed(rows), sum(map(len, rows))

        vectors, count = await run_in_threadpool(embed)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector.tolist() if encoding == "float" else base64.b64encode(vector.tobytes()).decode(),
            }
            for index, vector in enumerate(vectors)
        ]
        numbers = {"prompt_tokens": count, "total_tokens": count}
        return _json({"object": "list", "model": name, "data": data, "usage": numbers})


class Streamed(Response):
    """A stream of server-sent events; it ends the answers when the client is gone, slow, or out of time."""

    def __init__(self, app: App, answers: Any, bodies: Bodies, request: Request) -> None:
        super().__init__()
        self._app, self._answers, self._bodies, self._request = app, answers, bodies, request

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream."""

        async def part(content: bytes, more: bool = True) -> None:
            async with asyncio.timeout(BODY_SECONDS):
                await send({"type": "http.response.body", "body": content, "more_body": more})

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def write() -> None:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async with asyncio.timeout(self._app._timeout):
                    await self._events(part)
            except Exception as error:
                late = ApiError(504, f"the answer took more than {self._app._timeout:g} s", "timeout")
                told = late if isinstance(error, TimeoutError) else api_error(error)
                await part(b"data: " + dumped(told.body()) + b"\n\n")
            await part(b"data: [DONE]\n\n", more=False)

        writing, watching = asyncio.ensure_future(write()), asyncio.ensure_future(watch())
        try:
            await asyncio.wait([writing, watching], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (writing, watching):
                each.cancel()
            await asyncio.gather(writing, watching, return_exceptions=True)
            self._answers.cancel()
            self._app._count("doge_tokens_written_total", sum(len(row.token_ids) for row in self._answers.rows))

    async def _events(self, part: Any) -> None:
        rows, request = self._answers.rows, self._request
        records: list[list[Any]] = [[] for _ in rows]
        for index in range(len(rows) if request.is_chat else 0):
            await part(b"data: " + dumped(self._bodies.chunk(index, None, None, None)) + b"\n\n")
        left = len(rows)
        while left:
            index, piece, record = await self._answers.next()
            records[index].append(record)
            # The scheduler may be further than the events: an answer has ended with its last event.
            has_ended = rows[index].finish_reason is not None and len(records[index]) == len(rows[index].token_ids)
            if piece or has_ended:
                told = records[index][-1:] if request.logprobs is not None else None
                reason = rows[index].finish_reason if has_ended else None
                await part(b"data: " + dumped(self._bodies.chunk(index, piece, told, reason)) + b"\n\n")
            left -= has_ended
        if request.include_usage:
            await part(b"data: " + dumped(self._bodies.last(rows, request.n)) + b"\n\n")


async def _disconnected(http: Http) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumped(body), status, headers, "application/json")
