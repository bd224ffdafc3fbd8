"""The live runtime: what it adds to a request, and what batching gains when many devices ask at once.

    overhead   = latency - time of the edge's models - time of the device's models       on loopback, HTTP included
    throughput = images a second of 16 clients that ask again as soon as they are answered, over that of one

The edge is a process of its own, started as a user starts it. Rounds of one client and of many take turns, so that
other work on the machine meets both alike.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.live.connection import Connection, LinkError
from megopt.live.course import Prompt
from megopt.live.decision import Decision
from megopt.live.device import Device
from megopt.live.local_models import LocalModels
from megopt.live.messages import Request
from megopt.live.observation import KnownLink
from megopt.live.parity_processes import edge_process
from megopt.live.rows import decision_of
from megopt.live.trace import RateTrace
from megopt.metering.profile_request import SideRequest
from megopt.policies.base import Observation
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.scheme import Scheme, compile_all
from megopt.schemes.step_split import StepSplit
from megopt.tables.profile import load_profile

CAPTION = "a large red metal sphere left of a small green matte cube , plain floor"
SIDE_PX = 64
_RATE = np.array([1e10])
"""What the policy is told of the loopback's rate [bit/s]; nothing depends on it."""
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class _Row:
    """The policy of one row."""

    row: int
    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        return np.full(len(observation.link.snr), self.row, dtype=np.int64)


def run(
    num_requests: int, num_steps: int, num_clients: int, num_images: int, repeats: int, num_threads: int, seed: int
) -> dict[str, float]:
    """Return the measured times.

    - live.overhead_median_s, live.overhead_p95_s: of a step split at half the steps, capabilities asked for each time.
    - live.latency_median_s: of the same requests.
    - live.one_client_images_per_s, live.clients_images_per_s: medians over the rounds.
    - live.batching_gain: median of the ratios of neighbouring rounds.
    - live.models_share: share of the latency that the models take, median.

    Args:
        num_requests: timed requests of the overhead [1].
        num_steps: denoising steps; the profile "bundled" must hold them.
        num_clients: clients at once [1].
        num_images: images of one round [1].
        repeats: rounds of each kind [1].
        num_threads: of the edge's models [1].
        seed: of the noise.
    """
    require_whole(
        "live benchmark",
        1,
        num_requests=num_requests,
        num_clients=num_clients,
        num_images=num_images,
        repeats=repeats,
    )
    schemes: list[Scheme] = [Conventional(num_steps=(num_steps,)), StepSplit(num_steps=(num_steps,))]
    table, _ = compile_all(schemes, load_profile("bundled"))
    overrides = {"num_threads": num_threads, "max_waiting": 4 * num_clients, "max_batch": num_clients, "log": False}
    with tempfile.TemporaryDirectory() as folder, edge_process(overrides, Path(folder)) as port:
        times_s = asyncio.run(_overhead(table, num_steps, num_requests, port, seed))
        rates = asyncio.run(_throughput(num_steps, (1, num_clients), num_images, repeats, port, seed))
    overhead_s, latency_s = times_s[:, 0], times_s[:, 1]
    return {
        "live.overhead_median_s": float(np.median(overhead_s)),
        "live.overhead_p95_s": float(np.quantile(overhead_s, 0.95)),
        "live.latency_median_s": float(np.median(latency_s)),
        "live.models_share": float(np.median(1.0 - overhead_s / latency_s)),
        "live.one_client_images_per_s": float(np.median(rates[:, 0])),
        "live.clients_images_per_s": float(np.median(rates[:, 1])),
        "live.batching_gain": float(np.median(rates[:, 1] / rates[:, 0])),
        "live.num_clients": float(num_clients),
    }


async def _overhead(table: ActionTable, num_steps: int, num_requests: int, port: int, seed: int) -> FloatArray:
    """Return overhead and latency of each request [s], shape (num_requests, 2)."""
    decisions = [decision_of(table, row) for row in range(len(table))]
    wanted = Decision(mode="step_split", num_steps=num_steps, split_step=_half(decisions, num_steps))
    models = LocalModels.load(SideRequest(model="bundled/device"), table)
    trace = RateTrace(snr=np.ones(1), downlink_bps=_RATE, uplink_bps=_RATE, slot_s=np.inf)
    device = Device(models.pipeline, table, _Row(decisions.index(wanted)), KnownLink(trace=trace))
    times_s = []
    async with Connection(f"http://127.0.0.1:{port}") as connection:
        for number in range(-_WARM_UP, num_requests):
            prompt = Prompt(text=CAPTION, seed=seed + number + _WARM_UP, resolution_px=SIDE_PX)
            measured = (await device.generate(prompt, connection)).measured
            latency_s = float(measured.latency_s[0])
            models_s = float(measured.edge_s[0] + measured.device_s[0])
            times_s.append((latency_s - models_s, latency_s))
    return np.array(times_s[_WARM_UP:])


def _half(decisions: Sequence[Decision], num_steps: int) -> int:
    """Return the split step nearest to half the steps that the table offers."""
    offered = {one.split_step for one in decisions if one.mode == "step_split"}
    return min(offered, key=lambda split_step: abs(split_step - num_steps / 2))


async def _throughput(
    num_steps: int, clients: Sequence[int], num_images: int, repeats: int, port: int, seed: int
) -> FloatArray:
    """Return images a second [1/s] of each round, shape (repeats, number of kinds of rounds)."""
    decision = Decision(mode="model_split", num_steps=num_steps, split_step=num_steps)
    rates = []
    for _ in range(repeats):
        rates.append([num_images / await _round_s(num, num_images, decision, port, seed) for num in clients])
    return np.array(rates)


async def _round_s(num_clients: int, num_images: int, decision: Decision, port: int, seed: int) -> float:
    """Return how long `num_clients` need for `num_images` together [s]; each asks again once it is answered."""
    left = iter(range(num_images))

    async def ask() -> None:
        """Send requests one after the other."""
        async with Connection(f"http://127.0.0.1:{port}") as connection:
            for number in left:
                kinds = [frame.kind async for frame in connection.frames(_request(decision, seed + number))]
                if kinds != ["result"]:
                    message = f"live benchmark: the edge answered {kinds}; expected one result; look at its log"
                    raise LinkError(message)

    begun_s = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(num_clients)))
    return time.monotonic() - begun_s


def _request(decision: Decision, seed: int) -> Request:
    return Request(
        request_id=uuid.uuid4().hex,
        prompt=CAPTION,
        negative_prompt=None,
        sampler="ddim",
        guidance_scale=3.0,
        guidance_rescale=0.7,
        seed=seed,
        height_px=SIDE_PX,
        width_px=SIDE_PX,
        schedule_crc=0,
        checkpoint_every=0,
        deadline_s=600.0,
        decision=decision,
    )
