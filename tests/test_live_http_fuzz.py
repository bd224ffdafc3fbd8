"""Every call of the OpenAPI document with any path, query and body: an answer below 500, and an edge that goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megopt.live.edge import create_app
from megopt.live.modes_service import SharingEdgeService
from tests.live_modes import NOISE, REGION, SHARED, request_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SEGMENTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["../..", "..%2f..%2fetc%2fpasswd", "0" * 32, "f" * 32, "-1", "999999999999999999999", "%00", "a/b"]
    ),
    st.integers().map(str),
)
DECISIONS = (REGION, NOISE, SHARED)


@pytest.fixture(scope="module")
def service(load_tiny: Callable[[str], Any]) -> Iterator[SharingEdgeService]:
    made = SharingEdgeService(load_tiny("sd"), "tiny")
    yield made
    made.close(5.0)


@pytest.fixture(scope="module")
def app(service: SharingEdgeService) -> Any:
    return create_app(service)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Any bytes, any JSON, or a real request with some of its bytes changed."""
    kind = draw(st.sampled_from(["bytes", "json", "frame"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "json":
        values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)
        return json.dumps(draw(values)).encode()
    frame = bytearray(request_of(draw(st.sampled_from(DECISIONS))).frame().to_bytes())
    for _ in range(draw(st.integers(1, 3))):
        frame[draw(st.integers(0, len(frame) - 1))] ^= draw(st.integers(1, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_call_is_answered_below_500(app: Any, service: SharingEdgeService, data: st.DataObject) -> None:
    calls = [(path, method) for path, item in app.openapi()["paths"].items() for method in item]
    path, method = data.draw(st.sampled_from(sorted(calls)))
    parts = [quote(data.draw(SEGMENTS), safe="") if part.startswith("{") else part for part in path.split("/")]
    query = data.draw(st.dictionaries(st.sampled_from(["num_bytes", "x"]), st.text(max_size=12), max_size=2))
    headers = data.draw(st.sampled_from([{}, {"content-type": "application/json"}, {"authorization": "Bearer x"}]))
    content = data.draw(bodies())

    async def call() -> int:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with asyncio.timeout(30.0), httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
            answer = await client.request(
                method.upper(), "/".join(parts), params=query, headers=headers, content=content
            )
            return answer.status_code

    assert asyncio.run(call()) < 500
    assert len(service.sessions._sessions) <= service.sessions.max_sessions


def test_the_document_names_every_call(app: Any) -> None:
    paths = app.openapi()["paths"]
    assert {"/v1/capabilities", "/v1/requests", "/v1/layers", "/v1/layers/{request_id}/{step}", "/metrics"} <= set(
        paths
    )


def test_the_edge_is_alive_afterwards(app: Any) -> None:
    async def call() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://edge") as client:
            answer = await client.post("/v1/requests", content=request_of(REGION).frame().to_bytes())
            return answer.status_code

    assert asyncio.run(call()) == 200
