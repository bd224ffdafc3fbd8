"""What can go wrong between device and edge: damaged answers, lost links, stalled edges, policies that fail."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from megopt.arrays import IntArray
from megopt.diffusion.sampling import advance, decode, start
from megopt.live.connection import BusyError, Connection, LinkError
from megopt.live.course import Generated, Prompt
from megopt.live.device import Device, DeviceSettings
from megopt.live.edge import served_in_thread
from megopt.live.messages import Decision, Request
from megopt.live.observation import KnownLink
from megopt.live.service import EdgeService, EdgeSettings
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.policies.base import Observation
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import NUM_STEPS, SPLIT_STEP
from megopt.system.outcome import Work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMPT = Prompt(text="a red cube", seed=7, resolution_px=32, deadline_s=60.0)
FAST = RateTrace(snr=np.ones(1), downlink_bps=np.array([1e8]), uplink_bps=np.array([1e8]), slot_s=np.inf)
# scheme, label, num_steps, split_step
ROWS = (
    ("conventional", "device only, 4 steps", 4.0, np.nan),
    ("step_split", "2 of 4 steps at the edge", 4.0, 2.0),
    ("step_split", "99 of 100 steps at the edge", 100.0, 99.0),
    ("unheard_of", "2 of 4 steps somewhere else", 4.0, 2.0),
)
DEVICE_ONLY, STEP_SPLIT, LONG, FOREIGN = range(len(ROWS))


@dataclass(frozen=True, slots=True)
class Always:
    """A policy of one row, or one that errs or hangs."""

    row: int = 0
    error: str = ""
    sleep_s: float = 0.0
    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        time.sleep(self.sleep_s)
        if self.error:
            raise RuntimeError(self.error)
        return np.full(len(observation.link.snr), self.row, dtype=np.int64)


def device_of(pipelines: tuple[Any, Any], policy: Any, **settings: Any) -> Device:
    ones = np.full(len(ROWS), 0.01)
    work = dict.fromkeys(("edge_s", "device_s", "downlink_bits", "uplink_bits", "num_round_trips"), ones)
    table = ActionTable(
        scheme=np.array([row[0] for row in ROWS]),
        label=np.array([row[1] for row in ROWS]),
        knobs=(NUM_STEPS, SPLIT_STEP),
        settings=np.array([row[2:] for row in ROWS]),
        work=Work(**work, edge_energy_j=ones * np.nan, device_energy_j=ones * np.nan),
        metrics=(),
        quality=np.empty((len(ROWS), 0)),
        kind=np.array(["measured"] * len(ROWS)),
        profile="tiny",
    )
    return Device(pipelines[1], table, policy, KnownLink(trace=FAST), settings=DeviceSettings(**settings))


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> tuple[Any, Any]:
    return load_tiny("sd"), load_tiny("sd_device")


@pytest.fixture(scope="module")
def edge(pipelines: tuple[Any, Any]) -> Iterator[tuple[EdgeService, int]]:
    service = EdgeService(pipelines[0], "tiny")
    with served_in_thread(service) as port:
        yield service, port


def made(device: Device, port: int, prompt: Prompt = PROMPT, transport: Any = None) -> Generated:
    async def call() -> Generated:
        address = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60.0), Connection(address, transport=transport) as connection:
            return await device.generate(prompt, connection)

    return asyncio.run(call())


def reference(pipelines: tuple[Any, Any], split_step: int) -> Any:
    """What both models make of the prompt together when nothing lies between them."""
    begun = start(
        pipelines[0],
        PROMPT.text,
        num_steps=4,
        seed=7,
        sampler="ddim",
        guidance_scale=PROMPT.guidance_scale,
        resolution_px=32,
    )
    passed = advance(pipelines[0], begun, split_step)
    # 16 bits: what the codec leaves of the latent
    passed = replace(passed, latent=passed.latent.half().float()) if split_step > 0 else passed
    return decode(pipelines[1], advance(pipelines[1], passed, 4))[0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


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


class Damaging(httpx.AsyncHTTPTransport):
    """Does something to the first answers that hold frames."""

    def __init__(self, damage: Callable[[bytes], bytes], num_times: int) -> None:
        super().__init__()
        self.damage, self.num_left = damage, num_times

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if request.method != "POST" or self.num_left == 0:
            return response
        self.num_left -= 1
        content = await response.aread()
        return httpx.Response(200, stream=httpx.ByteStream(self.damage(content)))


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
    assert len(found.notes) == 2
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
        chosen = device._chosen

        async def then_dead(*arguments: Any) -> int:
            row = await chosen(*arguments)
            shim.replay(dead)
            return row

        device._chosen = then_dead  # type: ignore[method-assign]
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
