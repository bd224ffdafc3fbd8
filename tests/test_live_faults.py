"""What can go wrong between device and edge: damaged answers, lost links, stalled edges, policies that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from megopt.live.admission import EdgeSettings
from megopt.live.connection import BusyError, Connection, LinkError
from megopt.live.course import Generated
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.messages import Request
from megopt.live.observation import KnownLink
from megopt.live.server import served_in_thread
from megopt.live.service import EdgeService
from megopt.live.shim import ChannelShim
from tests import live_parts
from tests.live_parts import FAST, LOCAL, PROMPT, Always, Damaging, Row, free_port, made, reference, table_of

pipelines, edge = live_parts.pipelines, live_parts.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ROWS: tuple[Row, ...] = (
    LOCAL,
    ("step_split", "2 of 4 steps at the edge", 4, 2, 0.0, 16, 1),
    ("step_split", "99 of 100 steps at the edge", 100, 99, 0.0, 16, 1),
    ("unheard_of", "2 of 4 steps somewhere else", 4, 2, 0.0, 16, 1),
)
DEVICE_ONLY, STEP_SPLIT, LONG, FOREIGN = range(len(ROWS))


def device_of(pipelines: tuple[Any, Any], policy: Any, **settings: Any) -> Device:
    return Device(pipelines[1], table_of(ROWS), policy, KnownLink(trace=FAST), settings=DeviceSettings(**settings))


# --- lost links -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_link_lost_in_mid_request_is_finished_from_the_last_checkpoint(pipelines: tuple[Any, Any]) -> None:
    device = device_of(pipelines, Always(LONG), checkpoint_every=1, num_retries=0)

    async def call(port: int) -> Generated:
        shim = ChannelShim(("127.0.0.1", port), FAST)
        address = f"http://127.0.0.1:{await shim.start()}"

        async def cut() -> None:
            while b"checkpoint" not in heard:
                await asyncio.sleep(0.005)
            await shim.cut()

        heard: set[bytes] = set()
        take = device._take
        device._take = lambda frame, *rest: (take(frame, *rest), heard.add(frame.kind.encode()))[0]  # type: ignore[method-assign]
        try:
            async with asyncio.timeout(60.0), Connection(address) as connection:
                found, _ = await asyncio.gather(device.generate(PROMPT, connection), cut())
                return found
        finally:
            await shim.stop()

    with served_in_thread(EdgeService(pipelines[0], "tiny")) as port:
        found = asyncio.run(call(port))
    assert 0 < found.edge_steps < 99
    assert found.notes[-1] == f"finished alone from step {found.edge_steps}"
    assert found.image.shape == (32, 32, 3)


# --- damaged answers ------------------------------------------------------------------------------------------------


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-9],
    "empty": lambda content: b"",
    "corrupted": lambda content: bytes([*content[:-9], content[-9] ^ 1, *content[-8:]]),
    "foreign": lambda content: b"HTTP" + content[4:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_answer_is_asked_for_again_and_computed_once(pipelines: tuple[Any, Any], name: str) -> None:
    device = device_of(pipelines, Always(STEP_SPLIT))
    service = EdgeService(pipelines[0], "tiny")
    with served_in_thread(service) as port:
        found = made(device, port, transport=Damaging(DAMAGES[name], 2))
        assert service.metrics.ended() == {"done": 1}
    assert len(found.notes) == 1  # both times the same, and told once
    assert np.array_equal(found.image, reference(pipelines, 2))


def test_answers_that_stay_damaged_leave_the_device_on_its_own(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    device = device_of(pipelines, Always(STEP_SPLIT))
    found = made(device, edge[1], transport=Damaging(DAMAGES["corrupted"], 99))
    assert found.notes[-1] == "finished alone from step 0"
    assert np.array_equal(found.image, reference(pipelines, 0))


def test_a_frame_sent_twice_gives_one_image(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    device = device_of(pipelines, Always(STEP_SPLIT))
    found = made(device, edge[1], transport=Damaging(lambda content: content + content, 1))
    assert found.notes == ()
    assert np.array_equal(found.image, reference(pipelines, 2))


# --- policies and edges that fail -----------------------------------------------------------------------------------


def test_without_an_edge_the_device_is_on_its_own(pipelines: tuple[Any, Any]) -> None:
    found = made(device_of(pipelines, Always(STEP_SPLIT)), free_port())
    assert np.array_equal(found.image, reference(pipelines, 0))
    assert found.notes[0].startswith("no edge: link: ConnectError")


@pytest.mark.parametrize(
    ("policy", "note"),
    [
        (Always(error="no idea"), "the policy failed: RuntimeError: no idea"),
        (Always(sleep_s=5.0), "the policy did not answer within 0.2 s"),
        (Always(99), f"the policy chose row 99 of {len(ROWS)}"),
        (Always(FOREIGN), "device only: row 3, unheard_of: "),
    ],
    ids=["errs", "hangs", "outside", "foreign"],
)
def test_a_policy_that_fails_is_replaced_by_device_only(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], policy: Always, note: str
) -> None:
    begun_s = time.monotonic()
    found = made(device_of(pipelines, policy, policy_timeout_s=0.2), edge[1])
    assert found.row == DEVICE_ONLY
    assert found.notes[0].startswith(note)
    assert time.monotonic() - begun_s < 4.5  # a hanging policy is not waited for


@pytest.mark.slow
def test_an_edge_that_stalls_is_given_up_before_the_deadline(pipelines: tuple[Any, Any]) -> None:
    dead = replace(FAST, downlink_bps=np.array([0.0]))
    deadline_s = 3.0

    async def call(port: int) -> Generated:
        shim = ChannelShim(("127.0.0.1", port), FAST)
        address = f"http://127.0.0.1:{await shim.start()}"
        device = device_of(pipelines, Always(STEP_SPLIT), margin_s=0.5)
        decided = device._decided

        async def then_dead(*arguments: Any) -> Any:
            choice = await decided(*arguments)
            shim.replay(dead)
            return choice

        device._decided = then_dead  # type: ignore[method-assign]
        try:
            async with asyncio.timeout(60.0), Connection(address) as connection:
                return await device.generate(replace(PROMPT, deadline_s=deadline_s), connection)
        finally:
            await shim.stop()

    with served_in_thread(EdgeService(pipelines[0], "tiny")) as port:
        found = asyncio.run(call(port))
    assert "the deadline is near and the edge has not answered" in found.notes
    assert np.array_equal(found.image, reference(pipelines, 0))
    assert deadline_s - 0.6 < found.measured.latency_s[0] < deadline_s + 1.0


def test_a_refusal_is_told_once_and_a_wrong_token_is_not_tried_again(pipelines: tuple[Any, Any]) -> None:
    """An edge that answers every request with one status: what the device notes, and how often it asks."""

    class Refusing(httpx.AsyncHTTPTransport):
        status, num_asked = 400, 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.method != "POST":
                return await super().handle_async_request(request)
            self.num_asked += 1
            return httpx.Response(self.status, json={"error": "no"}, request=request)

    with served_in_thread(EdgeService(pipelines[0], "tiny")) as port:
        for status, num_asked in ((400, 3), (500, 3), (401, 1), (409, 1)):
            transport = Refusing()
            transport.status = status
            found = made(device_of(pipelines, Always(STEP_SPLIT), backoff_s=0.01), port, transport=transport)
            assert found.notes == (f"edge: it answers {status}: no", "finished alone from step 0")
            assert transport.num_asked == num_asked
            assert np.array_equal(found.image, reference(pipelines, 0))


def test_a_full_edge_is_not_waited_for(pipelines: tuple[Any, Any]) -> None:
    with served_in_thread(EdgeService(pipelines[0], "tiny", EdgeSettings(max_steps=3))) as port:
        found = made(device_of(pipelines, Always(STEP_SPLIT)), port)
    assert found.notes == ("device only: it does not offer 4 steps",)


def test_calls_name_what_is_wrong(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    decision = Decision(mode="step_split", num_steps=4, split_step=2)
    device = device_of(pipelines, Always())
    request = replace(device._request(PROMPT, decision), deadline_s=1e-9)

    async def call(asked: Request, address: str) -> list[Any]:
        async with Connection(address) as connection:
            return [frame async for frame in connection.frames(asked)]

    edge[0].submit(device._request(PROMPT, decision).frame().to_bytes())
    time.sleep(1.0)  # it has learned its times now
    with pytest.raises(BusyError, match="it answers 429"):
        asyncio.run(call(request, f"http://127.0.0.1:{edge[1]}"))
    with pytest.raises(LinkError, match="is the edge running"):
        asyncio.run(call(request, f"http://127.0.0.1:{free_port()}"))
