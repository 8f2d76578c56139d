"""The application: routes of OpenAI's API over one model, which may still be loading."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import json
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http
from starlette.responses import Response
from starlette.routing import Route

from doge_export.memory import resident_bytes
from doge_export.serve.api_error import ApiError, api_error, log_bug, out_of_time
from doge_export.serve.bodies import Bodies, dumped
from doge_export.serve.limits import Limits
from doge_export.serve.metrics import Metrics
from doge_export.serve.requests import Request, chat_request, completion_request
from doge_export.serve.watch import Watched

if TYPE_CHECKING:
    from doge_export.serve.model import ServedModel

PROMPTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input"}
"""Field that holds the text, by path."""
PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
Endpoint = Callable[[Http], Awaitable[Response]]


class App:
    """The routes and what they share.

    Args:
        name: name of the model.
        api_key: key that clients must have; None for none.
        origins: web pages that may use the server, besides its own.
        limits: limits of a request.

    Attributes:
        model: the model, once it is loaded.
        asgi: what the HTTP server runs.
    """

    def __init__(
        self, name: str, *, api_key: str | None = None, origins: tuple[str, ...] = (), limits: Limits | None = None
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self._key, self._origins = api_key, origins
        self.model: ServedModel | None = None
        self._started = time.time()
        self._metrics = Metrics()
        routes = [
            self._route("/", self._page, "GET"),
            self._route("/health", self._health, "GET"),
            self._route("/metrics", self._numbers, "GET"),
            self._route("/v1/models", self._models, "GET"),
            self._route("/v1/models/{name:path}", self._one_model, "GET"),
            self._route("/v1/chat/completions", self._chat, "POST"),
            self._route("/v1/completions", self._completions, "POST"),
            self._route("/v1/embeddings", self._embeddings, "POST"),
        ]
        cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
        handlers: Any = {HTTPException: self._not_routed}
        app = Starlette(routes=routes, middleware=cors if origins else [], exception_handlers=handlers)
        app.router.redirect_slashes = False  # an answer in another form than the API's
        self.asgi = Watched(app, self._metrics, self.limits, [route.path for route in routes])

    def _route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        @functools.wraps(endpoint)
        async def answering(http: Http) -> Response:
            try:
                return await endpoint(http)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                log_bug(error)
                return _refusal(api_error(error, PROMPTS.get(path)))

        return Route(path, answering, methods=[method])

    async def _not_routed(self, http: Http, error: Any) -> Response:
        what = {404: f"there is no {http.url.path[:200]}", 405: f"{http.url.path[:200]} does not take {http.method}"}
        message = what.get(error.status_code, str(error.detail))
        return _refusal(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    def _check_client(self, http: Http) -> None:
        """Refuse clients without the key, and pages of other sites, whose visitors would compute for them."""
        origin = http.headers.get("origin")
        own = (f"http://{http.headers.get('host')}", f"https://{http.headers.get('host')}")
        if origin is not None and origin not in own and not {"*", origin} & {*self._origins}:
            raise ApiError(403, f"pages of {origin[:200]} may not ask here: --cors allows them", "origin_not_allowed")
        if self._key is None:
            return
        kind, _, given = http.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode())
        if kind.lower() != "bearer" or not is_right:
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")

    def _loaded(self) -> ServedModel:
        if self.model is None:
            raise ApiError(503, "the model is loading: try again", "loading", headers={"Retry-After": "1"})
        return self.model

    async def _page(self, http: Http) -> Response:
        return Response(PAGE.read_bytes(), 200, _PAGE_HEADERS, "text/html")

    async def _health(self, http: Http) -> Response:
        scheduler = None if self.model is None else self.model.scheduler
        if scheduler is not None and scheduler.has_failed:
            return _json({"status": "failed"}, 500)
        return _json({"status": "loading"}, 503) if self.model is None else _json({"status": "ok"})

    async def _numbers(self, http: Http) -> Response:
        self._check_client(http)
        gauges = {"doge_uptime_seconds": ("Seconds since the start.", round(time.time() - self._started, 3))}
        if self.model is not None:
            gauges["doge_answers_running"] = ("Answers that are being computed.", self.model.running)
            gauges["doge_answers_waiting"] = ("Answers that wait.", self.model.waiting)
        resident = resident_bytes()
        if resident is not None:
            gauges["process_resident_memory_bytes"] = ("Memory of the process.", resident)
        return Response(self._metrics.text(gauges), 200, media_type="text/plain; version=0.0.4")

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": int(self._started), "owned_by": "doge-export"}

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"there is no model {name[:80]!r} here, only {self.name!r}", "model_not_found", "model")

    async def _models(self, http: Http) -> Response:
        self._check_client(http)
        return _json({"object": "list", "data": [self._card()]})

    async def _one_model(self, http: Http) -> Response:
        self._check_client(http)
        self._check_name(http.path_params["name"])
        return _json(self._card())

    async def _body(self, http: Http) -> Any:
        self._check_client(http)
        _check_is_json(http)
        most, content = self.limits.body_bytes, bytearray()
        too_large = ApiError(413, f"the body has more than {most} bytes", "body_too_large")
        length = http.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in http.stream():
                    content += part
                    if len(content) > most:
                        raise too_large
        except TimeoutError:
            message = f"the body did not come within {self.limits.body_seconds:g} s"
            raise ApiError(408, message, "timeout", headers={"Connection": "close"}) from None
        try:
            return json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", "invalid_json") from None

    async def _chat(self, http: Http) -> Response:
        return await self._write(http, chat_request)

    async def _completions(self, http: Http) -> Response:
        return await self._write(http, completion_request)

    async def _write(self, http: Http, read: Callable[[Any], Request]) -> Response:
        from doge_export.serve.answers import Answers
        from doge_export.serve.streamed import Streamed

        body = await self._body(http)
        scheduler = None if self.model is None else self.model.scheduler
        with contextlib.nullcontext() if scheduler is None else scheduler.request_coming():
            request = read(body)
            self._check_name(request.model)
            model = self._loaded()
            rows = model.rows(request) if request.is_short else await run_in_threadpool(model.rows, request)
            answers = Answers(model, rows, request.logprobs, self._metrics, http.state.arrived)
        if request.stream:
            return Streamed(answers, request, self.limits)
        records: list[list[Any]] = [[] for _ in rows]

        async def collect() -> None:
            async for events in answers.events():
                for index, event in events:
                    records[index].append(event.record)

        try:
            await self._in_time(http, collect())
        finally:
            answers.cancel()
        return _json(Bodies(request).whole(rows, records, request.n, request.logprobs is not None))

    async def _embeddings(self, http: Http) -> Response:
        from doge_export.runtime.feature_session import FeatureSession
        from doge_export.serve.embeddings import embedded, embedding_request

        request = embedding_request(await self._body(http))
        self._check_name(request.model)
        model = self._loaded()
        session = model.session
        if not isinstance(session, FeatureSession):
            message = "this model writes text: export with --task feature-extraction"
            raise ApiError(400, message, "model_not_supported", "model")
        is_cancelled = threading.Event()

        async def compute() -> Any:
            async with model.slots.taken():
                return await run_in_threadpool(embedded, session, request, is_cancelled)

        try:
            return _json(await self._in_time(http, compute()))
        finally:
            is_cancelled.set()

    async def _in_time(self, http: Http, computing: Any) -> Any:
        """Wait for a coroutine while the client does.

        Raises:
            ApiError: it takes too long (504).
            ClientDisconnect: the client is gone.
        """

        async def watch() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass

        wanted, gone = asyncio.ensure_future(computing), asyncio.ensure_future(watch())
        try:
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait([wanted, gone], timeout=self.limits.request_seconds, return_when=first)
            if wanted in done:
                return wanted.result()
            if gone in done:
                raise ClientDisconnect
            raise out_of_time(self.limits.request_seconds)
        finally:
            for each in (wanted, gone):
                each.cancel()


def _check_is_json(http: Http) -> None:
    """Refuse a body that its sender says is something else."""
    kind = http.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the body is {kind[:80]!r}, expected Content-Type: application/json", "unsupported_media_type"
        )
    encoding = http.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(415, f"the body is in {encoding[:80]!r}, expected it as it is", "unsupported_encoding")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumped(body), status, headers, "application/json")


def _refusal(error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers)
