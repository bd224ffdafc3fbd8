"""A Poisson stream of prompts served over the shim, request by request: what was predicted, and what came.

    device (this process) --- shim, one slot of the trace per request --- edge (a process of its own)

One user has one device, so a prompt that comes while the last is under way waits; that time is kept apart, for it says
nothing about the prediction. Block fading: the slot of a request holds until its image is there, and the device knows
it, as a radio does. What differs between prediction and measurement is then the time of the models and of the runtime.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray
from megopt.diffusion.captions import caption
from megopt.diffusion.scenes import sample_scenes
from megopt.live.connection import Connection
from megopt.live.course import Generated, Prompt
from megopt.live.modes_device import LayerConnection
from megopt.live.packets import Impairments
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.policies.base import Policy
from megopt.problem import Problem
from megopt.ranges import require_whole, require_within
from megopt.system.fading import Channel
from megopt.system.link import Link, LinkState

if TYPE_CHECKING:
    from megopt.live.device import Device


@dataclass(slots=True)
class ReplayedLink:
    """What the device's radio says: the slot that the shim holds at the moment.

    Attributes:
        state: of the link, fields of shape (1,).
    """

    state: LinkState

    async def observe(self, connection: Connection) -> LinkState:
        """Return the state of the slot."""
        return self.state


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """What one policy serves at one mean SNR.

    Attributes:
        policy: its name.
        number: of the mean SNR among those of the experiment.
        level_db: mean SNR [dB].
        state: the link, a slot per request, fields of shape (num_requests,).
        prompts: shape (num_requests,); the same for all policies at one mean SNR.
        arrivals_s: after the beginning of the cell [s], shape (num_requests,), rising.
    """

    policy: str
    number: int
    level_db: float
    state: LinkState
    prompts: Sequence[Prompt]
    arrivals_s: FloatArray

    def key(self, request: int) -> tuple[str, float, int]:
        """Return what names a request in the records."""
        return self.policy, self.level_db, request

    def link(self, request: int) -> LinkState:
        """Return the link of one request, fields of shape (1,)."""
        return self.state.take(np.array([request]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """One request of a cell.

    Attributes:
        cell: the cell.
        request: its number in the cell.
        waited_s: from its arrival until the device was free [s].
        found: the image, and what it cost.
    """

    cell: Cell
    request: int
    waited_s: float
    found: Generated


def prompts(
    num: int,
    resolution_px: int,
    *,
    seed: int,
    deadline_s: float,
    sampler: str,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
) -> list[Prompt]:
    """Return `num` prompts whose scenes no training has seen, each with noise of its own."""
    return [
        Prompt(
            text=caption(scene),
            seed=seed + number,
            resolution_px=resolution_px,
            deadline_s=deadline_s,
            sampler=sampler,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
        )
        for number, scene in enumerate(sample_scenes(seed, num, "unseen"))
    ]


def cells(
    policies: Sequence[str],
    channels: Mapping[float, Channel],
    link: Link,
    prompts: Sequence[Prompt],
    *,
    requests_per_s: float,
    seed: int,
) -> list[Cell]:
    """Return the cells of an experiment, level by level; fading and arrivals of a level are the same for all policies.

    Args:
        policies: names.
        channels: by mean SNR [dB].
        link: turns SNR into rates.
        prompts: as many as all levels have requests.
        requests_per_s: mean rate of the Poisson stream [1/s].
        seed: of fading and arrivals.

    Raises:
        ConfigError: for an impossible rate or seed.
    """
    require_within("live", 1e-6, 1e6, requests_per_s=requests_per_s)
    require_whole("live", 0, seed=seed)
    found = []
    for number, (level_db, channel) in enumerate(channels.items()):
        own = prompts[number :: len(channels)]
        fading, stream = np.random.SeedSequence((seed, number)).spawn(2)
        snr = channel.sample_snr(np.random.default_rng(fading), len(own))[:, 0]
        gaps_s = np.random.default_rng(stream).exponential(1.0 / requests_per_s, len(own))
        state, arrivals_s = link.state(snr), np.cumsum(gaps_s)
        found += [
            Cell(policy=name, number=number, level_db=level_db, state=state, prompts=own, arrivals_s=arrivals_s)
            for name in policies
        ]
    return found


def tightened(problem: Problem, margin: float) -> Problem:
    """Return `problem` with limits on costs smaller by the share `margin` [1], for policies that know no noise.

    Raises:
        ConfigError: for a margin outside 0 to 0.99.
    """
    require_within("live", 0.0, 0.99, limit_margin=margin)
    limits = [
        limit if limit.quantity == "quality" else replace(limit, bound=(1.0 - margin) * limit.bound)
        for limit in problem.limits
    ]
    return replace(problem, limits=tuple(limits))


async def serve(
    wanted: Sequence[Cell],
    device: Device,
    policies: Mapping[str, Policy],
    link: ReplayedLink,
    *,
    edge_port: int,
    done: Collection[tuple[str, float, int]] = (),
    num_warm_up: int = 2,
) -> AsyncGenerator[Served, None]:
    """Serve the requests of `wanted` that are not `done`, in order.

    Args:
        wanted: the cells.
        device: its observer is `link`.
        policies: by name.
        link: set to the slot of each request.
        edge_port: port of the edge on loopback.
        done: keys of requests that are left out.
        num_warm_up: requests before the first of each cell that nobody counts [1].
    """
    impairments = Impairments(delay_s=link.state.round_trip_s / 2.0)
    shim = ChannelShim(("127.0.0.1", edge_port), _held(link.state), impairments=impairments)
    try:
        async with LayerConnection(f"http://127.0.0.1:{await shim.start()}") as connection:
            for cell in wanted:
                left = [number for number in range(len(cell.prompts)) if cell.key(number) not in done]
                device.policy = policies[cell.policy]
                for number in left[:1] * num_warm_up:
                    _replay(shim, link, cell.link(number))
                    await device.generate(cell.prompts[number], connection)
                begun_s = time.monotonic() - (cell.arrivals_s[left[0]] if left else 0.0)
                for number in left:
                    _replay(shim, link, cell.link(number))
                    waited_s = await _arrived(device, connection, begun_s + cell.arrivals_s[number])
                    found = await device.generate(cell.prompts[number], connection)
                    yield Served(cell=cell, request=number, waited_s=waited_s, found=found)
    finally:
        await shim.stop()


async def _arrived(device: Device, connection: Connection, arrival_s: float) -> float:
    """Wait for an arrival, and return how long it waited for the device [s]; an idle device keeps itself informed."""
    late_s = time.monotonic() - arrival_s
    if late_s >= 0.0:
        return late_s
    await device.refresh(connection)
    await asyncio.sleep(max(0.0, arrival_s - time.monotonic()))
    return 0.0


def _replay(shim: ChannelShim, link: ReplayedLink, state: LinkState) -> None:
    link.state = state
    shim.replay(_held(state))


def _held(state: LinkState) -> RateTrace:
    return RateTrace.of_state(state, slot_s=np.inf)
