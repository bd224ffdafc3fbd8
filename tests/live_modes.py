"""An edge with all modes on loopback, a device for it, and decisions of every mode."""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import uvicorn

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.hybrid_super_resolution import HybridUpscaler, Tiling
from megopt.diffusion.layers import Body
from megopt.diffusion.sampling import advance
from megopt.diffusion.super_resolution import BicubicUpscaler
from megopt.live import runs
from megopt.live.course import Prompt
from megopt.live.edge import create_app
from megopt.live.messages import Decision, Request
from megopt.live.modes_device import CarriedOut, LayerConnection, SharingDevice
from megopt.live.modes_layers import LayerSessions, add_layer_routes
from megopt.live.modes_service import SharingEdgeService
from megopt.live.modes_shares import GroupShare, LayerShare, RegionShare
from megopt.live.observation import KnownLink
from megopt.live.service import EdgeSettings
from megopt.live.trace import RateTrace
from megopt.live.wire import Frame
from megopt.policies.base import Observation
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import CODEC_BITS, NUM_STEPS, SPLIT_STEP
from megopt.system.outcome import Work

PROMPT = Prompt(text="a red cube", seed=7, resolution_px=32, deadline_s=120.0)
FAST = RateTrace(snr=np.ones(1), downlink_bps=np.array([1e8]), uplink_bps=np.array([1e8]), slot_s=np.inf)
PART = RegionShare(top_px=8, left_px=0, height_px=16, width_px=24)
REGION = Decision(mode="region_split", num_steps=4, split_step=4, codec_bits=32, region=PART)
NOISE = Decision(mode="layer_split", num_steps=4, split_step=4, codec_bits=32, layers=LayerShare())
GROUP = GroupShare(group_id="0" * 32, size=2, prompt="a cat", common_steps=2, guidance_scale=2.0)
SHARED = Decision(mode="shared_steps", num_steps=5, split_step=3, codec_bits=32, group=GROUP)
INNER = Body(first="down_blocks.1", last="up_blocks.0")


@dataclass(frozen=True, slots=True)
class Never:
    """A policy that nobody asks."""

    reads_limits = False

    def act(self, observation: Observation) -> Any:
        raise AssertionError


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
    app = create_app(service, grace_s=2.0)
    add_layer_routes(app, service.sessions)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Edge(service, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()


def table_of() -> ActionTable:
    ones = np.full(1, 0.01)
    work = dict.fromkeys(("edge_s", "device_s", "downlink_bits", "uplink_bits", "num_round_trips"), ones)
    return ActionTable(
        scheme=np.array(["conventional"]),
        label=np.array(["device only, 4 steps"]),
        knobs=(NUM_STEPS, SPLIT_STEP, CODEC_BITS),
        settings=np.array([[4, np.nan, 16]], dtype=np.float64),
        work=Work(**work, edge_energy_j=ones * np.nan, device_energy_j=ones * np.nan),
        metrics=(),
        quality=np.empty((1, 0)),
        kind=np.array(["measured"]),
        profile="tiny",
    )


def device_of(pipeline: Any) -> SharingDevice:
    light = BicubicUpscaler(scale=2)
    hybrid = HybridUpscaler(foreground=light, background=light, tiling=Tiling(patch_px=16))
    return SharingDevice(
        pipeline, table_of(), Never(), KnownLink(trace=FAST), upscalers={2: light}, kinds={("hybrid", 2): hybrid}
    )


def made(device: SharingDevice, decision: Decision, edge: Edge, prompt: Prompt = PROMPT) -> CarriedOut:
    async def call() -> CarriedOut:
        async with asyncio.timeout(120.0), LayerConnection(f"http://127.0.0.1:{edge.port}") as connection:
            return await device.carry_out(prompt, decision, connection)

    return asyncio.run(call())


def request_of(decision: Decision, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "request_id": uuid.uuid4().hex,
        "prompt": PROMPT.text,
        "negative_prompt": None,
        "sampler": "ddim",
        "guidance_scale": PROMPT.guidance_scale,
        "seed": 7,
        "height_px": 32,
        "width_px": 32,
        "schedule_crc": 0,
        "checkpoint_every": 0,
        "deadline_s": 60.0,
        "decision": decision,
    }
    return Request(**values | changes)


def heard_by(edge: Edge, request: Request) -> list[Frame]:
    """All frames of a request that is submitted to the service itself."""

    async def listen() -> list[Frame]:
        async with asyncio.timeout(60.0):
            job = edge.service.submit(request.frame().to_bytes())
            return [Frame.from_bytes(payload) async for payload in job.heard()]

    return asyncio.run(listen())


def unsplit(pipeline: Any, decision: Decision, **changes: Any) -> Checkpoint:
    begun = runs.begin(pipeline, request_of(decision, **changes))
    return advance(pipeline, begun, decision.num_steps)
