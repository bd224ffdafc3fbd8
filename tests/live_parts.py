"""What tests of the live runtime share: fixtures, tables of rows, policies, a fast link, requests, what comes of them.

A test file takes a fixture over by its name: `edge = live_parts.edge`.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from megopt.arrays import IntArray
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.sampling import advance, decode, start
from megopt.live import runs
from megopt.live.connection import Connection
from megopt.live.course import Generated, Prompt
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.messages import Request
from megopt.live.server import served_in_thread
from megopt.live.service import EdgeService
from megopt.live.trace import RateTrace
from megopt.live.wire import Frame
from megopt.policies.base import Observation
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import CODEC_BITS, MERGE_RATIO, NUM_STEPS, SPLIT_STEP, SR_SCALE
from megopt.system.outcome import Work

PROMPT = Prompt(text="a red cube", seed=7, resolution_px=32, deadline_s=60.0)
FAST = RateTrace(snr=np.ones(1), downlink_bps=np.array([1e8]), uplink_bps=np.array([1e8]), slot_s=np.inf)
Row = tuple[str, str, float, float, float, float, float]
"""Scheme, label, num_steps, split_step, merge_ratio, codec_bits, sr_scale."""
LOCAL: Row = ("conventional", "device only, 4 steps", 4, np.nan, 0.0, 16, 1)


@pytest.fixture(scope="module")
def pipelines(load_tiny: Callable[[str], Any]) -> tuple[Any, Any]:
    """The models of edge and device."""
    return load_tiny("sd"), load_tiny("sd_device")


@pytest.fixture(scope="module")
def edge(pipelines: tuple[Any, Any]) -> Iterator[tuple[EdgeService, int]]:
    """A running edge and its port."""
    service = EdgeService(pipelines[0], "tiny")
    with served_in_thread(service) as port:
        yield service, port


def table_of(rows: Sequence[Row]) -> ActionTable:
    """Return rows that all cost the same."""
    ones = np.full(len(rows), 0.01)
    work = dict.fromkeys(("edge_s", "device_s", "downlink_bits", "uplink_bits"), ones)
    work["num_round_trips"] = ones * [not row[1].startswith("device only") for row in rows]
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


def made(device: Device, port: int, prompt: Prompt = PROMPT, transport: Any = None) -> Generated:
    """Return what a device makes with the edge on a port of loopback."""

    async def call() -> Generated:
        address = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60.0), Connection(address, transport=transport) as connection:
            return await device.generate(prompt, connection)

    return asyncio.run(call())


def reference(pipelines: tuple[Any, Any], split_step: int, num_steps: int = 4, side_px: int = 32) -> Any:
    """Return what both models make of the prompt together when nothing lies between them."""
    begun = start(
        pipelines[0],
        PROMPT.text,
        num_steps=num_steps,
        seed=7,
        sampler="ddim",
        guidance_scale=PROMPT.guidance_scale,
        guidance_rescale=PROMPT.guidance_rescale,
        resolution_px=side_px,
    )
    passed = advance(pipelines[0], begun, split_step)
    # 16 bits: what the codec leaves of the latent
    passed = replace(passed, latent=passed.latent.half().float()) if split_step > 0 else passed
    return decode(pipelines[1], advance(pipelines[1], passed, num_steps))[0]


def request_of(decision: Decision, **changes: Any) -> Request:
    """Return a request for the prompt."""
    values: dict[str, Any] = {
        "request_id": uuid.uuid4().hex,
        "prompt": PROMPT.text,
        "negative_prompt": None,
        "sampler": "ddim",
        "guidance_scale": PROMPT.guidance_scale,
        "guidance_rescale": PROMPT.guidance_rescale,
        "seed": 7,
        "height_px": 32,
        "width_px": 32,
        "schedule_crc": 0,
        "checkpoint_every": 0,
        "deadline_s": 60.0,
        "decision": decision,
    }
    return Request(**values | changes)


def heard(service: EdgeService, request: Request) -> list[Frame]:
    """Return all frames of a request that is submitted to the service itself."""

    async def listen() -> list[Frame]:
        async with asyncio.timeout(60.0):
            job = service.submit(request.frame().to_bytes())
            return [Frame.from_bytes(payload) async for payload in job.heard()]

    return asyncio.run(listen())


def unsplit(pipeline: Any, request: Request) -> Checkpoint:
    """Return the finished run of a request in one process."""
    return advance(pipeline, runs.begin(pipeline, request), request.decision.num_steps)


class Damaging(httpx.AsyncHTTPTransport):
    """Does something to the first answers that hold frames."""

    def __init__(self, damage: Callable[[bytes], bytes], num_times: int) -> None:
        super().__init__()
        self.damage, self.num_left = damage, num_times

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        content = await response.aread()
        if request.method != "POST" or self.num_left == 0 or not content:
            return httpx.Response(response.status_code, stream=httpx.ByteStream(content))
        self.num_left -= 1
        return httpx.Response(response.status_code, stream=httpx.ByteStream(self.damage(content)))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
