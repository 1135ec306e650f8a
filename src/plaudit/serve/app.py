"""The application behind a server, its key, and the server itself."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.errors import ConfigError
from plaudit.inference.reward_model import RewardModel
from plaudit.serve.batching import ServerMetrics
from plaudit.serve.errors import ERROR_ANSWERS, RequestError, stopping
from plaudit.serve.handlers import ROUTES, Route
from plaudit.serve.service import ScoringService
from plaudit.serve.settings import ServerSettings
from plaudit.version import __version__

OPEN_ROUTES = frozenset({"/health", "/docs", "/openapi.json"})
"""Routes that need no key: they hold no data of users."""


class Gate:
    """Checks the API key of each request, and counts requests by route and status."""

    def __init__(self, app: ASGIApp, api_key: str | None, metrics: ServerMetrics, routes: Collection[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self._digest = None if api_key is None else _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; passes other ASGI events on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = scope["path"] if scope["path"] in self._routes else "other"
        open_to_all = self._digest is None or scope["path"] in OPEN_ROUTES
        try:
            key = key_of(Headers(scope=scope).get("authorization", ""))
            # Digests are of equal length, and compared in a time that tells nothing.
            if open_to_all or hmac.compare_digest(_digest(key), self._digest or b""):
                await self._app(scope, receive, counted)
            else:
                fix, headers = "Send it as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"}
                refusal = RequestError(401, "the API key is missing or wrong", fix=fix, headers=headers)
                await refusal.response()(scope, receive, counted)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - start)


def key_of(authorization: str) -> str:
    """Returns the key in an ``Authorization`` header: a bearer token, or the password of ``http://user:KEY@host``.

    >>> key_of("Bearer abc"), key_of("Basic dTphYmM="), key_of("")
    ('abc', 'abc', '')
    """
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


DESCRIPTION = (
    "Rewards of a reward model, the same as `RewardModel.score` gives in Python: raw, higher is better, and only "
    "differences between responses to the same prompt mean something. Requests that arrive together are computed "
    'together. Every error has the body `{"error": {"message", "field", "fix"}}`.'
)


def create_app(model: RewardModel, settings: ServerSettings) -> FastAPI:
    """Returns the ASGI application that serves a reward model, which nothing else may use while it runs."""
    service = ScoringService(model, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="Plaudit", version=__version__, description=DESCRIPTION, lifespan=lifespan, redoc_url=None)
    app.state.service = service
    for path, route in ROUTES.items():
        _add_route(app, path, route, service)
    _add_status_routes(app, service, model)
    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, _error_response)
    routes = {*ROUTES, "/health", "/metrics", "/v1/models", "/docs", "/openapi.json"}
    app.add_middleware(Gate, api_key=settings.api_key, metrics=service.metrics, routes=routes)
    return app


def _add_route(app: FastAPI, path: str, route: Route, service: ScoringService) -> None:
    async def answer(request: Request) -> Response:
        return await service.answer(request, route.handler)

    examples = {name: {"value": value} for name, value in route.examples.items()}
    content = {"application/json": {"schema": route.request, "examples": examples}}
    example = {"application/json": {"example": route.example_answer}}
    app.post(
        path,
        name=path.strip("/"),
        summary=route.summary,
        description=route.description,
        responses={200: {"model": route.answer, "content": example}, **ERROR_ANSWERS},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )(answer)


def _add_status_routes(app: FastAPI, service: ScoringService, model: RewardModel) -> None:
    @app.get("/health", summary="Whether new requests are taken; 503 while the server stops")
    async def health() -> JSONResponse:
        if service.stopping:
            return stopping().response()
        return JSONResponse(
            {
                "status": "ok",
                "model": service.served.name,
                "device": str(model.device),
                "dtype": str(model.dtype).removeprefix("torch."),
                "batch_layout": model.batch_layout,
                "max_length": model.max_length,
                "queued_responses": service.batcher.responses,
                "version": __version__,
            }
        )

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", summary="Name of the model, as vLLM tells it")
    async def models() -> JSONResponse:
        entry = {"id": service.served.name, "object": "model", "owned_by": "plaudit", "max_model_len": model.max_length}
        return JSONResponse({"object": "list", "data": [entry]})


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        fix = {404: "/docs lists the routes.", 405: "/docs says which method it takes."}.get(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}"
        error = RequestError(error.status_code, message, fix=fix, headers=error.headers)
    elif not isinstance(error, RequestError):
        error = RequestError(500, f"an error of the server: {type(error).__name__}", fix="See its log.")
    return error.response()


logger = logging.getLogger("plaudit")


class RewardServer(uvicorn.Server):
    """A uvicorn server that answers accepted requests and refuses new ones before it stops."""

    def __init__(self, model: RewardModel, settings: ServerSettings, ready: Callable[[str], object]) -> None:
        app = create_app(model, settings)
        self._service: ScoringService = app.state.service
        self._settings, self._ready = settings, ready
        self._deadline: float | None = None
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=max(1, round(settings.stop_timeout)),
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen and reports the address."""
        await super().startup(sockets)
        if not self.should_exit and sockets:
            host, port = sockets[0].getsockname()[:2]
            self._ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Stops once accepted requests are answered; a second signal stops at once."""
        if self._deadline is not None:
            self.force_exit = self.should_exit = True
            return
        # The listener stays open meanwhile: a refusal with a reason is worth more than a closed port.
        self._service.stopping = True
        self._deadline = time.monotonic() + self._settings.stop_timeout
        name = signal.Signals(sig).name
        logger.info("%s: %d requests are being answered, new ones are refused.", name, self._service.active)

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop; uvicorn calls it ten times a second."""
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() >= self._deadline
            if late and self._service.active:
                logger.warning("%d requests were not answered in time.", self._service.active)
            self.should_exit = late or not self._service.active
        return await super().on_tick(counter)


def serve(model: RewardModel, settings: ServerSettings, listener: socket.socket) -> None:
    """Serves a reward model, which nothing else may use meanwhile, on a bound socket until SIGTERM or Ctrl-C."""
    if not settings.is_local and settings.api_key is None:
        logger.warning(
            "Everybody who can reach %s can use this server: there is no API key. Set one with PLAUDIT_API_KEY.",
            settings.host,
        )
    server = RewardServer(model, settings, lambda url: logger.info("Serving %s on %s (%s/docs)", model.name, url, url))
    with listener:
        server.run(sockets=[listener])


def bind(settings: ServerSettings) -> socket.socket:
    """Binds a socket to a server's address without listening; raises where the address is taken or not local."""
    try:
        addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = addresses[0]
        # With the protocol: only then does asyncio send small packets at once, or each answer takes 40 ms longer.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"there is no host {settings.host!r} ({error})", fix="Use 127.0.0.1, or 0.0.0.0.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror})",
            fix="Choose another --port, or 0 for a free one.",
        ) from error
    return listener
