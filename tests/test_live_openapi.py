"""The OpenAPI document of the edge held against the edge: schemathesis calls every route in process, with the token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megopt.live.edge import create_app
from megopt.live.modes_service import SharingEdgeService
from megopt.live.openapi import FRAMES
from tests.live_modes import NOISE, REGION, SHARED, request_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
HEADERS = {"Authorization": "Bearer 0123456789abcdef0123"}
ROUTES = (
    ("GET", "/v1/capabilities"),
    ("POST", "/v1/requests"),
    ("GET", "/v1/requests/{request_id}"),
    ("DELETE", "/v1/requests/{request_id}"),
    ("GET", "/v1/probe"),
    ("GET", "/metrics"),
    ("POST", "/v1/layers"),
    ("POST", "/v1/layers/{request_id}/{step}"),
    ("DELETE", "/v1/layers/{request_id}"),
)
IDS = tuple(f"{number:032x}" for number in range(3))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Any bytes, or a real request with at most three of its bytes changed."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    request = request_of(draw(st.sampled_from((REGION, NOISE, SHARED))), request_id=draw(st.sampled_from(IDS)))
    frame = bytearray(request.frame().to_bytes())
    for _ in range(draw(st.integers(0, 3))):
        frame[draw(st.integers(0, len(frame) - 1))] ^= draw(st.integers(1, 255))
    return bytes(frame)


@pytest.fixture(scope="module")
def pipeline(load_tiny: Callable[[str], Any]) -> Any:
    return load_tiny("sd")


@pytest.fixture
def service(pipeline: Any) -> Iterator[SharingEdgeService]:
    made = SharingEdgeService(pipeline, "tiny")
    for name in IDS[:2]:
        made.submit(request_of(REGION, request_id=name).frame().to_bytes())
    yield made
    made.close(5.0)


@pytest.fixture
def document(service: SharingEdgeService) -> Any:
    import schemathesis
    from schemathesis.config import ProjectConfig, ProjectsConfig, SchemathesisConfig

    schemathesis.openapi.media_type(FRAMES, bodies())
    app = create_app(service, token=HEADERS["Authorization"].removeprefix("Bearer "))
    config = SchemathesisConfig(projects=ProjectsConfig(default=ProjectConfig(headers=HEADERS)), seed=0)
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=HEADERS)


def test_the_document_names_every_route(document: Any) -> None:
    found = {(one.ok().method.upper(), one.ok().path) for one in document.get_all_operations()}
    assert found == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_answer_is_as_the_document_says(document: Any, method: str, path: str, data: st.DataObject) -> None:
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    mode = data.draw(st.sampled_from(GenerationMode))
    known = data.draw(st.sampled_from([{}, *({"request_id": name} for name in IDS)])) if "{" in path else {}
    case = data.draw(document[path][method].as_strategy(generation_mode=mode, path_parameters=known))
    response = case.call(headers=HEADERS)
    assert response.status_code < 500
    # which bytes are a frame is more than a document can say: a right body may be refused
    case.validate_response(response, headers=HEADERS, excluded_checks=[positive_data_acceptance])


def test_a_wrong_method_is_told_the_right_ones(document: Any) -> None:
    for path in {path for _, path in ROUTES}:
        route = next(iter(document[path].values()))
        case = route.Case(path_parameters={"request_id": "0", "step": 0}, method="OPTIONS")
        answer = case.call(headers=HEADERS)
        assert answer.status_code == 405
        assert answer.headers["allow"] == [", ".join(sorted(method for method, known in ROUTES if known == path))]
