"""The device over a real socket: every mode, the channel in between, what it measures and what it remembers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.errors import ConfigError, NotOfferedError
from megopt.live.connection import Connection
from megopt.live.course import Generated
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.modes_shares import RegionShare
from megopt.live.observation import KnownLink, ProbedLink
from megopt.live.rows import decision_of, device_only_row
from megopt.live.server import served_in_thread
from megopt.live.service import EdgeService
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.metering.energy import PowerModelMeter
from megopt.policies.base import Observation
from megopt.system.link import LinkState
from tests import live_parts
from tests.live_parts import FAST, LOCAL, PROMPT, Always, Row, made, reference, table_of

pipelines, edge = live_parts.pipelines, live_parts.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SQUARE = {"top_px": 0, "left_px": 0, "height_px": 16, "width_px": 16}
ROWS: tuple[Row, ...] = (
    LOCAL,
    ("conventional", "edge only, png, 4 steps", 4, np.nan, 0.0, 16, 1),
    ("conventional", "model split, 4 steps", 4, np.nan, 0.0, 16, 1),
    ("step_split", "2 of 4 steps at the edge", 4, 2, 0.0, 16, 1),
    ("step_split", "3 of 4 steps at the edge, merge 0.5, 8 bit", 4, 3, 0.5, 8, 1),
    ("step_split", "2 of 4 steps at the edge, x2", 4, 2, 0.0, 16, 2),
    ("unheard_of", "2 of 4 steps somewhere else", 4, 2, 0.0, 16, 1),
)
DEVICE_ONLY, EDGE_ONLY, MODEL_SPLIT, STEP_SPLIT, PACKED, ENLARGED, FOREIGN = range(len(ROWS))


class Radio:
    """A link whose radio draws watts."""

    async def observe(self, connection: Connection) -> LinkState:
        state = await KnownLink(trace=FAST).observe(connection)
        return replace(state, device_rx_power_w=0.5, device_tx_power_w=2.0)


def device_of(pipelines: tuple[Any, Any], policy: Any, observer: Any = None, **settings: Any) -> Device:
    return Device(
        pipelines[1],
        table_of(ROWS),
        policy,
        observer or KnownLink(trace=FAST),
        settings=DeviceSettings(**settings),
        upscalers={2: BicubicUpscaler(scale=2)},
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_read_as_decisions() -> None:
    table = table_of(ROWS)
    assert decision_of(table, EDGE_ONLY) == Decision(mode="edge_only", num_steps=4, split_step=4, image_codec="png")
    packed = Decision(mode="step_split", num_steps=4, split_step=3, merge_ratio=0.5, codec_bits=8)
    assert decision_of(table, PACKED) == packed
    lossy = table_of((("conventional", "edge only, jpeg 90, 4 steps", 4, np.nan, 0.0, 16, 1),))
    assert (decision_of(lossy, 0).image_codec, decision_of(lossy, 0).image_quality) == ("jpeg", 90)
    with pytest.raises(NotOfferedError, match="row 6, unheard_of: "):
        decision_of(table, FOREIGN)
    with pytest.raises(NotOfferedError, match="no row device only"):
        device_only_row(lossy)


# --- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "split_step", "edge_steps"), [(DEVICE_ONLY, 0, 0), (MODEL_SPLIT, 4, 4), (STEP_SPLIT, 2, 2)]
)
def test_a_shared_run_is_what_both_models_make_without_a_socket(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], row: int, split_step: int, edge_steps: int
) -> None:
    found = made(device_of(pipelines, Always(row)), edge[1])
    assert np.array_equal(found.image, reference(pipelines, split_step))
    assert (found.row, found.edge_steps, found.notes) == (row, edge_steps, ())


def test_the_edge_alone_sends_its_image(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    found = made(device_of(pipelines, Always(EDGE_ONLY)), edge[1])
    assert np.array_equal(found.image, reference((pipelines[0], pipelines[0]), 0))
    assert found.notes == ()


def test_packed_and_enlarged_images_have_the_size_asked_for(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    for row in (PACKED, ENLARGED):
        found = made(device_of(pipelines, Always(row)), edge[1])
        assert (found.image.shape, found.row, found.notes) == ((32, 32, 3), row, ())
    small = reference(pipelines, 2, side_px=16)
    assert np.array_equal(found.image, BicubicUpscaler(scale=2).upscale(small[np.newaxis])[0])


def test_what_was_measured_adds_up(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    found = made(device_of(pipelines, Always(STEP_SPLIT), ProbedLink()), edge[1])
    measured = found.measured
    parts_s = measured.edge_s + measured.device_s + measured.downlink_s + measured.uplink_s
    assert 0.0 < parts_s[0] <= measured.latency_s[0]
    assert measured.payload_bits[0] == 8 * (20 + 2 * 256 + 4)  # the frame of a latent of 4x8x8 at 16 bits
    assert found.predicted.edge_s[0] == 0.01
    assert np.isnan(measured.energy_j[0])


# --- the channel ----------------------------------------------------------------------------------------------------


def test_the_airtime_of_a_slow_link_is_in_the_measurement(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    slow = RateTrace(snr=np.ones(1), downlink_bps=np.array([4e4]), uplink_bps=np.array([1e6]), slot_s=np.inf)
    device = device_of(pipelines, Always(MODEL_SPLIT), KnownLink(trace=slow))

    async def call() -> Generated:
        shim = ChannelShim(("127.0.0.1", edge[1]), slow)
        port = await shim.start()
        try:
            async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{port}") as connection:
                return await device.generate(PROMPT, connection)
        finally:
            await shim.stop()

    found = asyncio.run(call())
    assert found.notes == ()
    assert found.measured.downlink_s[0] > 0.8 * found.measured.payload_bits[0] / 4e4
    assert np.array_equal(found.image, reference(pipelines, 4))


# --- what it measures and remembers ---------------------------------------------------------------------------------


def test_joules_are_those_of_the_meter_and_of_the_radio(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    meter = PowerModelMeter(5.0, "cpu")
    device = Device(pipelines[1], table_of(ROWS), Always(STEP_SPLIT), Radio(), meter=meter)
    found = made(device, edge[1])
    measured = found.measured
    radio_j = 0.5 * measured.downlink_s + 2.0 * measured.uplink_s
    assert measured.device_energy_j == pytest.approx(5.0 * measured.device_s + radio_j, rel=1e-2)
    assert found.energy_source == "power_model"
    assert np.isnan(measured.energy_j[0])  # nobody metered the edge


def test_the_timeline_tells_what_is_within_a_stage(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    stages = [stage for stage, _ in made(device_of(pipelines, Always(STEP_SPLIT)), edge[1]).timeline]
    assert stages == [
        "observe and decide",
        "edge and link",
        "of which queue",
        "of which edge",
        "of which link",
        "denoise",
        "decode",
    ]


@dataclass(frozen=True, slots=True)
class Drawing(Always):
    """A policy that knows how likely its choice was."""

    def probabilities(self, observation: Observation) -> Any:
        return np.full((1, len(ROWS)), 1.0 / len(ROWS))


def test_the_shadow_and_the_probability_are_written_down(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    device = device_of(pipelines, Drawing(STEP_SPLIT))
    device.shadow = Always(MODEL_SPLIT)
    with caplog.at_level("INFO", logger="megopt.live"):
        found = made(device, edge[1])
    assert (found.row, found.shadow_row, found.probability) == (STEP_SPLIT, MODEL_SPLIT, pytest.approx(1 / len(ROWS)))
    assert any('"event": "shadow"' in one.message and '"shadow": 2' in one.message for one in caplog.records)
    device.policy, device.shadow = Always(MODEL_SPLIT), None  # another policy without a new device
    swapped = made(device, edge[1])
    assert (swapped.row, swapped.shadow_row, swapped.probability) == (MODEL_SPLIT, None, 1.0)


def test_a_stated_decision_is_carried_out_and_found_among_the_rows(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    device = device_of(pipelines, Always(DEVICE_ONLY))
    stated = Decision(mode="step_split", num_steps=4, split_step=2)
    other = Decision(mode="step_split", num_steps=4, split_step=1)

    async def call(decision: Decision) -> Generated:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{edge[1]}") as connection:
            return await device.generate(PROMPT, connection, decision)

    found, unknown = asyncio.run(call(stated)), asyncio.run(call(other))
    assert (found.row, unknown.row) == (STEP_SPLIT, -1)
    assert np.array_equal(found.image, reference(pipelines, 2))
    assert np.array_equal(unknown.image, reference(pipelines, 1))
    assert np.isnan(unknown.predicted.latency_s[0])
    assert found.predicted.latency_s[0] == pytest.approx(found.table_latency_s + found.predicted_runtime_s)
    with pytest.raises(ConfigError, match="it does not offer mode region_split"):
        asyncio.run(call(Decision(mode="region_split", num_steps=4, split_step=4, region=RegionShare(**SQUARE))))


def test_the_edge_states_its_joules(pipelines: tuple[Any, Any]) -> None:
    service = EdgeService(pipelines[0], "tiny", meter=PowerModelMeter(50.0, "cpu"))
    with served_in_thread(service) as port:
        found = made(device_of(pipelines, Always(STEP_SPLIT)), port)
    assert found.result is not None
    assert found.result.energy_source == "power_model"
    assert found.measured.edge_energy_j == pytest.approx(50.0 * found.measured.edge_s, rel=0.2)


def test_what_the_edge_said_is_remembered_for_a_while(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    async def calls(device: Device) -> int:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{edge[1]}") as connection:
            counted, ask = [0], connection.capabilities

            async def capabilities(*arguments: Any) -> Any:
                counted[0] += 1
                return await ask(*arguments)

            connection.capabilities = capabilities  # type: ignore[method-assign]
            await device.refresh(connection)
            for _ in range(2):
                assert (await device.generate(PROMPT, connection)).notes == ()
            return counted[0]

    assert asyncio.run(calls(device_of(pipelines, Always(STEP_SPLIT), refresh_s=60.0))) == 1
    assert asyncio.run(calls(device_of(pipelines, Always(STEP_SPLIT)))) == 3
