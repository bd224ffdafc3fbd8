"""The calls of the edge: HTTP around `megopt.live.service`.

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
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.routing import Match

from megopt import __version__
from megopt.errors import PayloadError
from megopt.live.admission import RefusedError
from megopt.live.jobs import Job
from megopt.live.messages import Capabilities
from megopt.live.modes_layers import add_layer_routes
from megopt.live.modes_service import SharingEdgeService
from megopt.live.openapi import FRAMES, answers, guarded, takes_frame
from megopt.live.service import EdgeService

MAX_REQUEST_BYTES = 1 << 16
MAX_PROBE_BYTES = 1 << 20
REFUSAL_STATUS = {"busy": 429, "closing": 503, "other_request": 409}
BODY_TIMEOUT_S = 10.0


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
