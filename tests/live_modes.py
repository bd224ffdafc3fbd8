"""An edge with all modes on loopback, a device for it, and decisions of every mode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.hybrid_super_resolution import HybridUpscaler, Tiling
from megopt.diffusion.layer_pieces import Body
from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.live.admission import EdgeSettings
from megopt.live.course import Generated, Prompt
from megopt.live.decision import Decision
from megopt.live.messages import Request
from megopt.live.modes_device import LayerConnection, SharingDevice
from megopt.live.modes_layers import LayerSessions
from megopt.live.modes_service import SharingEdgeService
from megopt.live.modes_shares import GroupShare, LayerShare, RegionShare
from megopt.live.observation import KnownLink
from megopt.live.server import served_in_thread
from megopt.live.wire import Frame
from tests import live_parts as parts
from tests.live_parts import FAST, LOCAL, Always, heard, request_of, table_of
from tests.live_parts import unsplit as finished

PROMPT = replace(parts.PROMPT, deadline_s=120.0)
PART = RegionShare(top_px=8, left_px=0, height_px=16, width_px=24)
REGION = Decision(mode="region_split", num_steps=4, split_step=4, codec_bits=32, region=PART)
NOISE = Decision(mode="layer_split", num_steps=4, split_step=4, codec_bits=32, layers=LayerShare())
GROUP = GroupShare(group_id="0" * 32, size=2, prompt="a cat", common_steps=2, guidance_scale=2.0)
SHARED = Decision(mode="shared_steps", num_steps=5, split_step=3, codec_bits=32, group=GROUP)
LIGHT = BicubicUpscaler(scale=2)
HYBRID = HybridUpscaler(foreground=LIGHT, background=LIGHT, tiling=Tiling(patch_px=16))
INNER = Body(first="down_blocks.1", last="up_blocks.0")


@dataclass(frozen=True, slots=True)
class Edge:
    """A running edge."""

    service: SharingEdgeService
    port: int

    @property
    def sessions(self) -> LayerSessions:
        """Its layer splits."""
        return self.service.sessions


@contextmanager
def served(pipeline: Any, **settings: Any) -> Iterator[Edge]:
    """An edge on a free port of loopback, in a thread."""
    service = SharingEdgeService(pipeline, "tiny", EdgeSettings(**settings))
    with served_in_thread(service) as port:
        yield Edge(service, port)


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> dict[str, Any]:
    """Models by name."""
    return {name: load_tiny(name) for name in ("sd", "sd_device", "sdxl", "sd3")}


@pytest.fixture(scope="module")
def edge(pipelines: dict[str, Any]) -> Iterator[Edge]:
    """A running edge with all modes."""
    with served(pipelines["sd"]) as running:
        yield running


def device_of(pipeline: Any) -> SharingDevice:
    return SharingDevice(
        pipeline,
        table_of([LOCAL]),
        Always(error="nobody asks it"),
        KnownLink(trace=FAST),
        upscalers={2: LIGHT},
        kinds={("hybrid", 2): HYBRID},
    )


def made(device: SharingDevice, decision: Decision, edge: Edge, prompt: Prompt = PROMPT) -> Generated:
    async def call() -> Generated:
        async with asyncio.timeout(120.0), LayerConnection(f"http://127.0.0.1:{edge.port}") as connection:
            return await device.generate(prompt, connection, decision)

    return asyncio.run(call())


def heard_by(edge: Edge, request: Request) -> list[Frame]:
    """All frames of a request that is submitted to the service itself."""
    return heard(edge.service, request)


def unsplit(pipeline: Any, decision: Decision, **changes: Any) -> Checkpoint:
    return finished(pipeline, request_of(decision, **changes))
