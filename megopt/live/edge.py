"""The edge on a socket: HTTP around `megopt.live.service`.

| call | answer |
|---|---|
| GET /v1/capabilities | what the edge can do and how busy it is, JSON |
| POST /v1/requests, body: a request frame | frames as they come: checkpoints on the way, then a result or a failure |
| GET /v1/requests/{id} | the same frames again, from the first on, as long as they are kept |
| DELETE /v1/requests/{id} | stops it at the next step boundary |
| GET /v1/probe?num_bytes=n | n bytes, for a device that measures its link |
| GET /metrics | counters for Prometheus |

and those of `megopt.live.modes_layers` where the service offers layer split.

A device that disconnects cancels nothing: it may come back for its result. 429 says when to try again.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.routing import Match

from megopt import __version__
from megopt.errors import ConfigError, PayloadError
from megopt.live.admission import RefusedError
from megopt.live.jobs import Job
from megopt.live.messages import Capabilities
from megopt.live.modes_layers import add_layer_routes
from megopt.live.modes_service import SharingEdgeService
from megopt.live.openapi import FRAMES, answers, guarded, takes_frame
from megopt.live.service import EdgeService
from megopt.live.telemetry import log_event

MAX_REQUEST_BYTES = 1 << 16
MAX_PROBE_BYTES = 1 << 20
REFUSAL_STATUS = {"busy": 429, "closing": 503, "other_request": 409}
BODY_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 120
"""Time for which an idle connection is kept [s]: a device pays for a new one with round trips."""


def create_app(service: EdgeService, *, token: str | None = None, grace_s: float = 10.0) -> FastAPI:
    """Return the web application of an edge service; it closes the service when it is shut down.

    Args:
        service: takes the requests.
        token: bearer token that every call must carry; None for none.
        grace_s: time that running requests get at a shutdown [s].
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close, grace_s)

    document = {} if token is None else guarded()
    app = FastAPI(
        title="megopt edge", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, **document
    )
    if token is not None:
        app.middleware("http")(_guard(token))
    app.add_exception_handler(PayloadError, _bad_payload)
    app.add_exception_handler(RefusedError, _refusal)
    app.add_exception_handler(405, _wrong_method)
    _add_routes(app, _Calls(service))
    if isinstance(service, SharingEdgeService):
        add_layer_routes(app, service.sessions)
    return app


def _add_routes(app: FastAPI, calls: _Calls) -> None:
    one, frames = "/v1/requests/{request_id}", answers(200, FRAMES, 400, 409, 429, 503)
    for path, call, method, said in (
        ("/v1/capabilities", calls.capabilities, "GET", answers(200, "application/json", model=Capabilities)),
        ("/v1/requests", calls.submit, "POST", frames | takes_frame()),
        (one, calls.fetch, "GET", answers(200, FRAMES, 404)),
        (one, calls.cancel, "DELETE", answers(204, None, 404)),
        ("/v1/probe", calls.probe, "GET", answers(200, "application/octet-stream")),
        ("/metrics", calls.metrics, "GET", answers(200, "text/plain")),
    ):
        app.add_api_route(path, call, methods=[method], response_class=Response, **said)


def serve(
    service: EdgeService,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until the process is told to stop; called from its main thread.

    Args:
        service: takes the requests.
        host: address to listen on.
        port: likewise.
        token: bearer token; needed off loopback.
        certificate: of TLS, with `key`; None for none.
        key: of the certificate.

    Raises:
        ConfigError: for an address off loopback without a token, a certificate without its key, or an address that
            cannot be listened on.
    """
    check_exposure(host, token)
    if (certificate is None) != (key is None):
        message = "serve: a certificate and its key belong together; give both or none"
        raise ConfigError(message)
    paths: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key} if certificate else {}
    config = uvicorn.Config(
        create_app(service, token=token),
        log_level="warning",
        timeout_graceful_shutdown=10,
        timeout_keep_alive=KEEP_ALIVE_S,
        **paths,
    )
    listener = _listener(host, port)
    # the kernel takes connections from here on
    log_event("listening", url=f"http{'s' if certificate else ''}://{host}:{port}", model=service.model)
    # uvicorn ends gracefully at these signals, and then raises them again: the caller still has something to say
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def served_in_thread(service: EdgeService, *, token: str | None = None) -> Iterator[int]:
    """Serve on a free port of loopback while the context lasts, and yield the port: an edge within a program.

    Args:
        service: takes the requests; it is closed with the context.
        token: bearer token; None for none.
    """
    app = create_app(service, token=token, grace_s=2.0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    listener = _listener("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        message = (
            f"serve: host={host} port={port} cannot be listened on ({error.strerror}); choose another port or host"
        )
        raise ConfigError(message) from error


def check_exposure(host: str, token: str | None) -> None:
    """Raise unless `host` is a loopback address or there is a token of 16 characters or more.

    Raises:
        ConfigError: otherwise.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if token is not None and (len(token) < 16 or not token.isascii()):
        message = "serve: the token is short or not ASCII; expected 16 ASCII characters or more"
        raise ConfigError(message)
    if not is_loopback and token is None:
        message = f"serve: host={host} is off loopback and there is no token; set token, or host=127.0.0.1"
        raise ConfigError(message)


class _Calls:
    """What the routes call."""

    def __init__(self, service: EdgeService) -> None:
        self._service = service

    async def capabilities(self) -> JSONResponse:
        """Return what the edge can do and how busy it is."""
        return JSONResponse(self._service.capabilities().plain())

    async def submit(self, request: Request) -> StreamingResponse:
        """Take a request frame; answer with frames as they come."""
        body = await _body(request)
        return self._frames(await asyncio.to_thread(self._service.submit, body))

    async def fetch(self, request_id: str) -> Response:
        """Answer with the frames of a request that is known."""
        job = self._service.find(request_id)
        return _unknown() if job is None else self._frames(job)

    async def cancel(self, request_id: str) -> Response:
        """Stop a request at its next step boundary."""
        return Response(status_code=204) if self._service.cancel(request_id) else _unknown()

    async def probe(self, num_bytes: Annotated[int, Query(ge=1, le=MAX_PROBE_BYTES)] = 1024) -> Response:
        """Answer with so many bytes."""
        return Response(bytes(num_bytes), media_type="application/octet-stream")

    async def metrics(self) -> Response:
        """Answer with the counters."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    def _frames(self, job: Job) -> StreamingResponse:
        async def counted() -> AsyncIterator[bytes]:
            async for payload in job.heard():
                self._service.metrics.sent_bytes.inc(len(payload))
                yield payload

        return StreamingResponse(counted(), media_type=FRAMES)


def _guard(token: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    expected = f"Bearer {token}".encode()

    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        came = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(came, expected):
            return JSONResponse({"error": "no token, or a wrong one"}, 401, {"WWW-Authenticate": "Bearer"})
        return await call(request)

    return guard


async def _body(request: Request) -> bytes:
    """Return the body, refused as soon as it is too large."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    message = f"request of more than {MAX_REQUEST_BYTES} B; send a shorter prompt"
                    raise PayloadError(message)
    except TimeoutError as error:
        message = f"request: its body did not arrive within {BODY_TIMEOUT_S:g} s; send it again"
        raise PayloadError(message) from error
    return bytes(body)


def _unknown() -> Response:
    return JSONResponse({"error": "no such request, or one that is forgotten"}, 404)


async def _bad_payload(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    content = {"error": str(error), "reason": error.reason, "retry_after_s": error.retry_after_s}
    after = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return JSONResponse(content, REFUSAL_STATUS[error.reason], after)


async def _wrong_method(request: Request, error: Exception) -> Response:
    """Name the methods of all routes of the path; the framework names those of its first route only."""
    found = [route for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    allowed = sorted({method for route in found for method in route.methods})
    return JSONResponse({"error": f"expected {' or '.join(allowed)}"}, 405, {"Allow": ", ".join(allowed)})
