"""What can go wrong in the modes beyond step split: cut and stalled links, damaged frames, other versions, no edge."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from megopt.diffusion.sampling import decode
from megopt.live import modes_device
from megopt.live.course import Generated
from megopt.live.decision import Decision
from megopt.live.device_settings import DeviceSettings
from megopt.live.modes_device import LayerConnection, SharingDevice
from megopt.live.shim import ChannelShim
from tests import live_modes
from tests.live_modes import FAST, INNER, NOISE, PROMPT, REGION, SHARED, Edge, device_of, unsplit
from tests.live_parts import Damaging

pipelines, edge = live_modes.pipelines, live_modes.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
DECISIONS = {"region": REGION, "shared": SHARED, "noise": NOISE}
MARGIN_S = 0.5


def with_settings(device: SharingDevice, **settings: Any) -> SharingDevice:
    device.settings = DeviceSettings(**settings)
    return device


def decision_for(name: str, device: SharingDevice) -> Decision:
    return replace(NOISE, layers=device.layers(INNER)) if name == "layers" else DECISIONS[name]


def alone(pipelines: dict[str, Any], name: str, decision: Decision) -> Any:
    """What the device makes of the prompt without an edge."""
    pipeline = pipelines["sd" if name == "layers" else "sd_device"]
    return decode(pipeline, unsplit(pipeline, decision))[0]


def device_for(name: str, pipelines: dict[str, Any], **settings: Any) -> SharingDevice:
    return with_settings(device_of(pipelines["sd" if name == "layers" else "sd_device"]), **settings)


async def over_shim(
    edge: Edge,
    use: Callable[[LayerConnection, ChannelShim], Awaitable[Generated]],
    transport: httpx.AsyncBaseTransport | None = None,
) -> Generated:
    shim = ChannelShim(("127.0.0.1", edge.port), FAST)
    address = f"http://127.0.0.1:{await shim.start()}"
    try:
        async with asyncio.timeout(120.0), LayerConnection(address, transport=transport) as connection:
            return await use(connection, shim)
    finally:
        await shim.stop()


@pytest.mark.parametrize("name", [*DECISIONS, "layers"])
def test_without_an_edge_the_device_finishes_alone(pipelines: dict[str, Any], name: str) -> None:
    device = device_for(name, pipelines)
    decision = decision_for(name, device)

    async def call() -> Generated:
        async with LayerConnection("http://127.0.0.1:9") as connection:
            return await device.generate(PROMPT, connection, decision)

    found = asyncio.run(call())
    assert found.notes[0].startswith("no edge: link: ConnectError")
    assert found.notes[-1] == "finished alone from step 0"
    assert np.array_equal(found.image, alone(pipelines, name, decision))
    assert found.measured.edge_energy_j[0] == 0.0


@pytest.mark.parametrize("name", [*DECISIONS, "layers"])
def test_a_link_that_stalls_is_given_up_before_the_deadline(edge: Edge, pipelines: dict[str, Any], name: str) -> None:
    device = device_for(name, pipelines, margin_s=MARGIN_S, num_retries=1)
    decision, deadline_s = decision_for(name, device), 4.0
    dead = replace(FAST, downlink_bps=np.array([0.0]))

    async def use(connection: LayerConnection, shim: ChannelShim) -> Generated:
        ask = device._ask

        async def then_dead(*given: Any) -> None:
            shim.replay(dead)
            await ask(*given)

        device._ask = then_dead  # type: ignore[method-assign]
        return await device.generate(replace(PROMPT, deadline_s=deadline_s), connection, decision)

    begun_s = time.monotonic()
    found = asyncio.run(over_shim(edge, use))
    assert found.measured.latency_s[0] < deadline_s + 1.0
    assert time.monotonic() - begun_s < deadline_s + 10.0  # with the shim's own end
    assert found.notes[-1] == "finished alone from step 0"
    assert np.array_equal(found.image, alone(pipelines, name, decision))


@pytest.mark.parametrize("name", ["noise", "layers"])
def test_a_link_cut_on_the_way_is_finished_from_the_last_step(
    edge: Edge, pipelines: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_for(name, pipelines, num_retries=0)
    decision = decision_for(name, device)
    decision = replace(decision, num_steps=40, split_step=40)

    async def use(connection: LayerConnection, shim: ChannelShim) -> Generated:
        async def cut() -> None:
            while len(crossed) < 2:
                await asyncio.sleep(0.002)
            await shim.cut()

        found, _ = await asyncio.gather(device.generate(PROMPT, connection, decision), cut())
        return found

    crossed: list[Any] = []
    note = modes_device._note

    def noted(*given: Any) -> None:
        note(*given)
        crossed.append(given)

    monkeypatch.setattr(modes_device, "_note", noted)
    found = asyncio.run(over_shim(edge, use))
    assert 2 <= found.edge_steps < 40
    assert found.notes[-1] == f"finished alone from step {found.edge_steps}"
    # noise and activations are the edge's own model; the rest of the run is the device's
    assert found.image.shape == (32, 32, 3)
    if name == "layers":
        assert np.array_equal(found.image, alone(pipelines, name, decision))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-9],
    "corrupted": lambda content: bytes([*content[:-9], content[-9] ^ 1, *content[-8:]]),
    "another version": lambda content: content[:4] + bytes([content[4] ^ 0x7F]) + content[5:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DECISIONS)
def test_damaged_answers_are_asked_for_again_and_then_given_up(
    edge: Edge, pipelines: dict[str, Any], name: str, damage: str
) -> None:
    device = device_for(name, pipelines, num_retries=2, backoff_s=0.01)
    decision = decision_for(name, device)
    if decision.group is not None:
        decision = replace(decision, group=replace(decision.group, group_id=uuid.uuid4().hex, size=3))

    async def use(times: int) -> Generated:
        async with LayerConnection(
            f"http://127.0.0.1:{edge.port}", transport=Damaging(DAMAGES[damage], times)
        ) as connection:
            return await device.generate(PROMPT, connection, decision)

    once, always = asyncio.run(use(1)), asyncio.run(use(99))
    assert len(once.notes) == 1
    assert once.edge_steps == decision.split_step
    assert always.notes[-1].startswith("finished alone from step")
    assert always.image.shape == (32, 32, 3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_activations_leave_the_device_on_its_own(edge: Edge, pipelines: dict[str, Any], damage: str) -> None:
    device = device_for("layers", pipelines, num_retries=1, backoff_s=0.01)
    decision = decision_for("layers", device)

    async def use() -> Generated:
        address, transport = f"http://127.0.0.1:{edge.port}", Damaging(DAMAGES[damage], 99)
        async with LayerConnection(address, transport=transport) as connection:
            return await device.generate(PROMPT, connection, decision)

    found = asyncio.run(use())
    assert found.notes[-1] == "finished alone from step 0"
    assert np.array_equal(found.image, alone(pipelines, "layers", decision))
