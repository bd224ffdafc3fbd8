"""The device over a real socket: every mode, the channel in between, what it measures and what it remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from megopt.arrays import IntArray
from megopt.diffusion.sampling import advance, decode, start
from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.errors import NotOfferedError
from megopt.live.connection import Connection
from megopt.live.course import Generated, Prompt
from megopt.live.decisions import decision_of, device_only_row
from megopt.live.device import Device, DeviceSettings
from megopt.live.edge import served_in_thread
from megopt.live.messages import Decision
from megopt.live.observation import KnownLink, ProbedLink
from megopt.live.service import EdgeService
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.metering.energy import PowerModelMeter
from megopt.policies.base import Observation
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import CODEC_BITS, MERGE_RATIO, NUM_STEPS, SPLIT_STEP, SR_SCALE
from megopt.system.link import LinkState
from megopt.system.outcome import Work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMPT = Prompt(text="a red cube", seed=7, resolution_px=32, deadline_s=60.0)
FAST = RateTrace(snr=np.ones(1), downlink_bps=np.array([1e8]), uplink_bps=np.array([1e8]), slot_s=np.inf)
# scheme, label, num_steps, split_step, merge_ratio, codec_bits, sr_scale
ROWS: tuple[tuple[str, str, float, float, float, float, float], ...] = (
    ("conventional", "device only, 4 steps", 4, np.nan, 0.0, 16, 1),
    ("conventional", "edge only, png, 4 steps", 4, np.nan, 0.0, 16, 1),
    ("conventional", "model split, 4 steps", 4, np.nan, 0.0, 16, 1),
    ("step_split", "2 of 4 steps at the edge", 4, 2, 0.0, 16, 1),
    ("step_split", "3 of 4 steps at the edge, merge 0.5, 8 bit", 4, 3, 0.5, 8, 1),
    ("step_split", "2 of 4 steps at the edge, x2", 4, 2, 0.0, 16, 2),
    ("unheard_of", "2 of 4 steps somewhere else", 4, 2, 0.0, 16, 1),
)
DEVICE_ONLY, EDGE_ONLY, MODEL_SPLIT, STEP_SPLIT, PACKED, ENLARGED, FOREIGN = range(len(ROWS))


def table_of(rows: tuple[Any, ...] = ROWS) -> ActionTable:
    ones = np.full(len(rows), 0.01)
    work = dict.fromkeys(("edge_s", "device_s", "downlink_bits", "uplink_bits", "num_round_trips"), ones)
    return ActionTable(
        scheme=np.array([row[0] for row in rows]),
        label=np.array([row[1] for row in rows]),
        knobs=(NUM_STEPS, SPLIT_STEP, MERGE_RATIO, CODEC_BITS, SR_SCALE),
        settings=np.array([row[2:] for row in rows], dtype=np.float64),
        work=Work(**work, edge_energy_j=ones * np.nan, device_energy_j=ones * np.nan),
        metrics=(),
        quality=np.empty((len(rows), 0)),
        kind=np.array(["measured"] * len(rows)),
        profile="tiny",
    )


@dataclass(frozen=True, slots=True)
class Always:
    """A policy of one row."""

    row: int
    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        return np.full(len(observation.link.snr), self.row, dtype=np.int64)


class Radio:
    """A link whose radio draws watts."""

    async def observe(self, connection: Connection) -> LinkState:
        state = await KnownLink(trace=FAST).observe(connection)
        return replace(state, device_rx_power_w=0.5, device_tx_power_w=2.0)


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> tuple[Any, Any]:
    return load_tiny("sd"), load_tiny("sd_device")


@pytest.fixture(scope="module")
def edge(pipelines: tuple[Any, Any]) -> Iterator[tuple[EdgeService, int]]:
    service = EdgeService(pipelines[0], "tiny")
    with served_in_thread(service) as port:
        yield service, port


def device_of(pipelines: tuple[Any, Any], policy: Any, observer: Any = None, **settings: Any) -> Device:
    return Device(
        pipelines[1],
        table_of(),
        policy,
        observer or KnownLink(trace=FAST),
        settings=DeviceSettings(**settings),
        upscalers={2: BicubicUpscaler(scale=2)},
    )


def made(device: Device, port: int, prompt: Prompt = PROMPT) -> Generated:
    async def call() -> Generated:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{port}") as connection:
            return await device.generate(prompt, connection)

    return asyncio.run(call())


def reference(pipelines: tuple[Any, Any], split_step: int, num_steps: int = 4, side_px: int = 32) -> Any:
    """What both models make of the prompt together when nothing lies between them."""
    begun = start(
        pipelines[0],
        PROMPT.text,
        num_steps=num_steps,
        seed=7,
        sampler="ddim",
        guidance_scale=PROMPT.guidance_scale,
        resolution_px=side_px,
    )
    passed = advance(pipelines[0], begun, split_step)
    # 16 bits: what the codec leaves of the latent
    passed = replace(passed, latent=passed.latent.half().float()) if split_step > 0 else passed
    return decode(pipelines[1], advance(pipelines[1], passed, num_steps))[0]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_read_as_decisions() -> None:
    table = table_of()
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
    device = Device(pipelines[1], table_of(), Always(STEP_SPLIT), Radio(), meter=meter)
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
