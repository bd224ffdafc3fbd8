"""A run split over the socket: the unsplit run bit for bit at every step, within the codec's error where packed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megopt.benchmarks import handover
from megopt.diffusion.sampling import advance
from megopt.errors import ConfigError
from megopt.live import runs
from megopt.live.connection import Connection
from megopt.live.course import Generated
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.handover import received_checkpoint
from megopt.live.observation import KnownLink
from megopt.live.server import served_in_thread
from megopt.live.service import EdgeService
from megopt.live.wire import Frame
from tests.live_parts import FAST, LOCAL, PROMPT, Always, request_of, table_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NUM_STEPS = 6
SAMPLERS = {"ddim": "sd", "euler": "sd", "dpmpp_2m": "sd", "flow_match_euler": "sd3"}


@pytest.fixture(scope="module")
def ports(load_tiny: Callable[[str], Any]) -> Iterator[dict[str, int]]:
    """Ports of edges by model."""
    with (
        served_in_thread(EdgeService(load_tiny("sd"), "sd")) as sd,
        served_in_thread(EdgeService(load_tiny("sd3"), "sd3")) as sd3,
    ):
        yield {"sd": sd, "sd3": sd3}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_at_every_step_it_is_the_unsplit_run(
    ports: dict[str, int], load_tiny: Callable[[str], Any], sampler: str
) -> None:
    pipeline, prompt = load_tiny(SAMPLERS[sampler]), replace(PROMPT, sampler=sampler)
    device = Device(pipeline, table_of([LOCAL]), Always(0), KnownLink(trace=FAST))
    modes = {**dict.fromkeys(range(1, NUM_STEPS), "step_split"), NUM_STEPS: "model_split", 0: "device_only"}

    async def images() -> dict[int, Generated]:
        async with asyncio.timeout(120.0), Connection(f"http://127.0.0.1:{ports[SAMPLERS[sampler]]}") as connection:
            return {
                step: await device.generate(
                    prompt, connection, Decision(mode=mode, num_steps=NUM_STEPS, split_step=step, codec_bits=32)
                )
                for step, mode in modes.items()
            }

    found = asyncio.run(images())
    assert [found[step].edge_steps for step in modes] == list(modes)
    assert all(one.notes == () for one in found.values())
    for step, one in found.items():
        assert np.array_equal(one.image, found[0].image), step


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("split_step", range(1, NUM_STEPS))
def test_packed_it_is_off_by_half_a_step_of_the_codec_at_most(
    ports: dict[str, int], load_tiny: Callable[[str], Any], split_step: int, bits: int
) -> None:
    pipeline = load_tiny("sd")
    decision = Decision(mode="step_split", num_steps=NUM_STEPS, split_step=split_step, codec_bits=bits)
    request = request_of(decision)

    async def heard() -> list[Frame]:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{ports['sd']}") as connection:
            return [frame async for frame in connection.frames(request)]

    (frame,) = asyncio.run(heard())
    begun = runs.begin(pipeline, request)
    came = received_checkpoint(frame, begun, split_step, decision).latent.numpy()
    exact = advance(pipeline, begun, split_step).latent.numpy()
    scale = np.ptp(exact, axis=(2, 3), keepdims=True) / (2**bits - 1)
    assert np.all(np.abs(came - exact) <= 0.5 * scale * (1.0 + 1e-4))
    assert np.abs(came - exact).max() > 0.0


def test_what_a_hand_over_costs_and_gives_away(tiny_pipelines: dict[str, Path]) -> None:
    models: dict[str, Any] = {"edge": str(tiny_pipelines["sd"]), "device": str(tiny_pipelines["sd"]), "side_px": 32}
    found = handover.run(3, 4, split_steps=(1, 4), codec_bits=(32, 4), seed=0, **models)
    assert found["handover.1.edge_psnr_db"] == 99.0  # one model on both ends: the edge knows every pixel
    assert found["handover.1.32.packed_psnr_db"] == 99.0 > found["handover.4.4.packed_psnr_db"]
    assert found["handover.4.32.heard_psnr_db"] == 99.0  # nothing is left to do but to decode
    assert found["handover.1.32.heard_psnr_db"] < 99.0
    with pytest.raises(ConfigError, match=r"split_steps \(5,\) of a run of 4"):
        handover.run(3, 4, split_steps=(5,), codec_bits=(32,), seed=0, **models)
    with pytest.raises(ConfigError, match="split_steps"):
        handover.run(3, 4, split_steps=(), codec_bits=(32,), seed=0, **models)
