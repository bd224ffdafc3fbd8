"""The edge: results, admission, deadlines, cancellation, fetching again, tokens, metrics, batching, shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from megopt.diffusion.sampling import advance, decode
from megopt.errors import ConfigError, PayloadError
from megopt.live import batches, runs
from megopt.live.admission import EdgeSettings, RefusedError
from megopt.live.decision import Decision
from megopt.live.edge import MAX_REQUEST_BYTES, create_app
from megopt.live.handover import received_checkpoint, received_image, schedule_crc
from megopt.live.messages import Capabilities, Request, Result
from megopt.live.server import check_exposure
from megopt.live.service import EdgeService
from megopt.live.wire import Frame, FrameReader
from tests.live_parts import heard, unsplit
from tests.live_parts import request_of as asked_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
TOKEN = "0123456789abcdef"
EXACT = Decision(mode="step_split", num_steps=4, split_step=2, codec_bits=32)


@pytest.fixture(scope="module")
def pipeline(load_tiny: Callable[[str], Any]) -> Any:
    return load_tiny("sd")


@pytest.fixture
def service(pipeline: Any) -> Iterator[EdgeService]:
    made = EdgeService(pipeline, "tiny", EdgeSettings(max_waiting=3))
    yield made
    made.close(5.0)


def request_of(decision: Decision = EXACT, **changes: Any) -> Request:
    return asked_for(decision, **changes)


def with_app(
    service: EdgeService, use: Callable[[httpx.AsyncClient], Awaitable[None]], token: str | None = None, **headers: str
) -> None:
    """Call the application in memory."""

    async def call() -> None:
        transport = httpx.ASGITransport(app=create_app(service, token=token))
        async with (
            asyncio.timeout(30.0),
            httpx.AsyncClient(transport=transport, base_url="http://edge", headers=headers) as client,
        ):
            await use(client)

    asyncio.run(call())


# --- what it makes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("split_step", [1, 2, 3])
def test_a_run_split_at_the_edge_is_the_unsplit_run(
    service: EdgeService, pipeline: Any, split_step: int, sampler: str
) -> None:
    request = request_of(replace(EXACT, split_step=split_step), sampler=sampler)
    (frame,) = heard(service, request)
    result = Result.of_frame(frame)
    assert (result.step, result.decision, result.batch_size) == (split_step, request.decision, 1.0)
    passed = received_checkpoint(frame, runs.begin(pipeline, request), result.step, result.decision)
    assert torch.equal(advance(pipeline, passed, 4).latent, unsplit(pipeline, request).latent)


def test_edge_only_sends_the_image(service: EdgeService, pipeline: Any) -> None:
    request = request_of(Decision(mode="edge_only", num_steps=3, split_step=3))
    (frame,) = heard(service, request)
    image = received_image(frame, request.decision, (32, 32))
    assert np.array_equal(image, decode(pipeline, unsplit(pipeline, request))[0])


def test_checkpoints_on_the_way_come_before_the_result(service: EdgeService, pipeline: Any) -> None:
    decision = Decision(mode="model_split", num_steps=4, split_step=4, codec_bits=32)
    frames = heard(service, request_of(decision, checkpoint_every=1))
    assert [frame.kind for frame in frames] == ["checkpoint"] * 3 + ["result"]
    assert [Result.of_frame(frame).step for frame in frames] == [1, 2, 3, 4]


def test_requests_that_wait_together_are_computed_together(pipeline: Any) -> None:
    service = EdgeService(pipeline, "tiny", EdgeSettings(max_batch=4))
    try:
        first = request_of(replace(EXACT, num_steps=30, split_step=29))
        others = [request_of(replace(EXACT, split_step=k), seed=k, prompt=p) for k, p in ((1, "a cat"), (3, "a cube"))]
        jobs = [service.submit(request.frame().to_bytes()) for request in (first, *others)]

        async def listen(index: int) -> Result:
            frames = [Frame.from_bytes(payload) async for payload in jobs[index].heard()]
            passed = received_checkpoint(
                frames[-1], runs.begin(pipeline, jobs[index].request), others[index - 1].decision.split_step, EXACT
            )
            alone = advance(pipeline, runs.begin(pipeline, jobs[index].request), passed.step)
            torch.testing.assert_close(passed.latent, alone.latent, rtol=1e-4, atol=1e-4)
            return Result.of_frame(frames[-1])

        short, long = asyncio.run(listen(1)), asyncio.run(listen(2))
        assert short.batch_size == 2.0
        assert long.batch_size == pytest.approx((2 + 1 + 1) / 3)
    finally:
        service.close(10.0)


# --- once, late, cancelled ------------------------------------------------------------------------------------------


def test_the_same_request_again_is_computed_once(service: EdgeService) -> None:
    request = request_of()
    assert heard(service, request) == heard(service, request)
    assert b'megopt_requests_total{reason="done"} 1.0' in service.metrics.text()
    with pytest.raises(RefusedError, match="known for another content"):
        service.submit(replace(request, seed=8).frame().to_bytes())


def test_results_are_forgotten_after_their_time(pipeline: Any) -> None:
    service = EdgeService(pipeline, "tiny", EdgeSettings(keep_s=0.0))
    try:
        request = request_of()
        heard(service, request)
        assert service.find(request.request_id) is None
    finally:
        service.close(5.0)


def test_a_cancelled_request_ends_and_the_next_one_runs(service: EdgeService) -> None:
    long = request_of(replace(EXACT, num_steps=100, split_step=99))
    job = service.submit(long.frame().to_bytes())
    assert service.cancel(long.request_id)
    assert heard(service, request_of())[-1].kind == "result"
    assert job.reason == "cancelled"
    assert not service.cancel(long.request_id)
    assert not service.cancel("0" * 32)


def test_a_listener_that_leaves_cancels_nothing(service: EdgeService) -> None:
    request = request_of(replace(EXACT, num_steps=20, split_step=19), checkpoint_every=1)

    async def leave() -> None:
        async for _ in service.submit(request.frame().to_bytes()).heard():
            return

    asyncio.run(leave())
    assert heard(service, request)[-1].kind == "result"


def test_a_deadline_ends_a_request_between_two_steps(service: EdgeService) -> None:
    request = request_of(replace(EXACT, num_steps=100, split_step=99), deadline_s=0.02)
    (frame,) = heard(service, request)
    assert (frame.kind, frame.fields["reason"]) == ("failure", "deadline")


def until_idle(service: EdgeService) -> None:
    """Wait until the last job is booked, which is a moment after its answer is out."""
    end_s = time.monotonic() + 10.0
    while service.capabilities().num_waiting and time.monotonic() < end_s:
        time.sleep(0.01)
    assert service.capabilities().num_waiting == 0


def test_a_busy_edge_says_when_to_come_again(service: EdgeService) -> None:
    heard(service, request_of())  # so that it knows its times
    until_idle(service)
    long = [request_of(replace(EXACT, num_steps=100, split_step=99), deadline_s=3600.0) for _ in range(2)]
    for request in long:
        service.submit(request.frame().to_bytes())
    told = service.capabilities()
    assert told.num_waiting == 2
    assert told.wait_s > 0.0

    async def use(client: httpx.AsyncClient) -> None:
        hasty = request_of(deadline_s=told.step_s / 100)
        answer = await client.post("/v1/requests", content=hasty.frame().to_bytes())
        assert answer.status_code == 429
        assert answer.json()["retry_after_s"] > 0.0
        assert int(answer.headers["retry-after"]) >= 1

    with_app(service, use)
    for request in long:
        service.cancel(request.request_id)


def test_a_failure_of_the_model_ends_only_its_own_request(
    service: EdgeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "megopt.live")
    with monkeypatch.context() as patch:
        patch.setattr(batches, "encode_run", lambda *_: 1 / 0)
        (frame,) = heard(service, request_of())
    assert (frame.kind, frame.fields["reason"]) == ("failure", "internal")
    assert heard(service, request_of())[-1].kind == "result"
    (refused,) = heard(service, request_of(sampler="flow_match_euler"))
    assert refused.fields["reason"] == "refused"


def test_shutdown_ends_what_waits(pipeline: Any) -> None:
    service = EdgeService(pipeline, "tiny", EdgeSettings(max_batch=1))
    jobs = [
        service.submit(request_of(replace(EXACT, num_steps=n, split_step=n - 1)).frame().to_bytes()) for n in (100, 99)
    ]
    service.close(0.01)
    assert {job.reason for job in jobs} <= {"shutdown", "cancelled"}
    with pytest.raises(RefusedError, match="shutting down"):
        service.submit(request_of().frame().to_bytes())


@pytest.mark.heavy
def test_memory_does_not_grow_over_a_thousand_requests(pipeline: Any) -> None:
    service = EdgeService(pipeline, "tiny", EdgeSettings(keep_s=0.0))
    decision = Decision(mode="model_split", num_steps=1, split_step=1)
    try:
        heard(service, request_of(decision))
        tracemalloc.start()
        sizes = []
        for number in range(1001):
            assert heard(service, request_of(decision, seed=number))[-1].kind == "result"
            if number % 500 == 0:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        service.close(5.0)
    assert service.metrics.ended() == {"done": 1002}
    assert sizes[2] - sizes[1] < 100_000


# --- the socket's side ----------------------------------------------------------------------------------------------


def test_http_gives_frames_and_gives_them_again(service: EdgeService, pipeline: Any) -> None:
    request = request_of()

    async def use(client: httpx.AsyncClient) -> None:
        told = Capabilities.of_plain((await client.get("/v1/capabilities")).json())
        assert (told.model, told.problems(request.decision, told.latent_space)) == ("tiny", [])
        answer = await client.post("/v1/requests", content=request.frame().to_bytes())
        (frame,) = FrameReader().feed(answer.content)
        assert Result.of_frame(frame).request_id == request.request_id
        again = await client.get(f"/v1/requests/{request.request_id}")
        assert again.content == answer.content
        assert (await client.get("/v1/requests/unknown")).status_code == 404
        assert (await client.delete(f"/v1/requests/{request.request_id}")).status_code == 404  # it has ended
        assert len((await client.get("/v1/probe?num_bytes=777")).content) == 777
        assert (await client.get("/v1/probe?num_bytes=0")).status_code == 422
        metrics = (await client.get("/metrics")).text
        assert f"megopt_sent_bytes_total {2.0 * len(answer.content)}" in metrics
        assert "red cube" not in metrics

    with_app(service, use)
    assert schedule_crc(runs.begin(pipeline, request)) != request.schedule_crc


def test_payloads_that_are_no_request_are_refused(service: EdgeService) -> None:
    good = request_of().frame().to_bytes()

    async def use(client: httpx.AsyncClient) -> None:
        too_many = request_of(replace(EXACT, num_steps=101)).frame().to_bytes()
        local = request_of(Decision(mode="device_only", num_steps=4, split_step=0)).frame().to_bytes()
        bad = [b"", good[:-1], bytes(100), bytes([*good[:30], good[30] ^ 1, *good[31:]]), too_many, local]
        for body in [*bad, bytes(MAX_REQUEST_BYTES + 1)]:
            answer = await client.post("/v1/requests", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]

    with_app(service, use)


@pytest.mark.parametrize(("sent", "status"), [({}, 401), ({"authorization": "Bearer wrong"}, 401)])
def test_every_call_needs_the_token(service: EdgeService, sent: dict[str, str], status: int) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for path in ("/v1/capabilities", "/metrics", "/openapi.json", "/v1/probe", "/v1/requests/x"):
            assert (await client.get(path)).status_code == status
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).status_code == 200

    with_app(service, use, TOKEN, **sent)


def test_off_loopback_needs_a_token() -> None:
    check_exposure("127.0.0.1", None)
    check_exposure("::1", None)
    check_exposure("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "192.168.1.2", "edge.example"):
        with pytest.raises(ConfigError, match="off loopback and there is no token"):
            check_exposure(host, None)
    with pytest.raises(ConfigError, match="16 ASCII characters or more"):
        check_exposure("127.0.0.1", "short")


def test_logs_are_json_without_prompts(service: EdgeService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="megopt.live"):
        heard(service, request_of(prompt="a red cube on grass"))
        until_idle(service)
    (line,) = [record.message for record in caplog.records if record.name == "megopt.live"]
    logged = json.loads(line)
    assert (logged["event"], logged["reason"], logged["split_step"]) == ("request", "done", 2)
    assert "grass" not in line


def test_settings_and_requests_out_of_range_are_refused(service: EdgeService) -> None:
    with pytest.raises(ConfigError, match="max_batch is 0"):
        EdgeSettings(max_batch=0)
    with pytest.raises(PayloadError, match="2048x32 px; this edge offers"):
        service.submit(request_of(height_px=2048).frame().to_bytes())
