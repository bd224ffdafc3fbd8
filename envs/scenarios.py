"""Settings to start from: the defaults of `megopt/Request-v0` and `megopt/Cell-v0`, and the setting of MEG-CVPO.

Each function returns the `EnvParams` of one scenario; what is left out takes the value that its docstring names.
Objects may also be said by name or as a mapping, see `megopt.envs.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megopt.envs.arrivals import Arrivals, Poisson
from megopt.envs.batching import BatchCurve
from megopt.envs.cell_parameters import CellParams
from megopt.envs.limit_shares import limit_bounds
from megopt.envs.parameters import EnvParams
from megopt.envs.scenario_defaults import Schemes, common_settings
from megopt.envs.settings import (
    Said,
    Scenarios,
    arrivals_of,
    profile_of,
)
from megopt.errors import NotOfferedError
from megopt.problem import Limit, Problem
from megopt.schemes.conventional import Conventional
from megopt.system.channel import Channel, LogDistance
from megopt.system.link import Link
from megopt.tables.profile import Profile, Side

DEFAULT_PROFILE = "megsplitting_sdxl"
DEFAULT_CELL_PROFILE = "h100__snapdragon8gen3__sdxl"
DEFAULT_CVPO_PROFILE = "bundled"
_CELL_LINK = Link(bandwidth_hz=20e6)
CVPO_STEPS = tuple(range(4, 13))
CVPO_MERGE_RATIOS = tuple(round(0.1 * tenth, 1) for tenth in range(10))
_CVPO_PARTS: tuple[tuple[Side, str], ...] = (
    ("edge", "denoise_step"),
    ("edge", "pipeline_overhead"),
    ("edge", "merge"),
    ("device", "unmerge"),
    ("device", "vae_decode"),
)


def request(
    *,
    profile: str | Path | Profile = DEFAULT_PROFILE,
    schemes: Schemes = None,
    channel: Channel | Said | None = None,
    link: Link | Said | None = None,
    problem: Problem | Said | None = None,
    episode_length: int = 64,
    is_pipelined: bool = False,
    battery_j: float = np.inf,
    deadline_s: float = np.inf,
) -> EnvParams:
    """Return the parameters of one device with one request at a time.

    Args:
        profile: measured tables, or the name or folder of a profile.
        schemes: ways to share; those that the profile cannot carry are left out. By default conventional and step
            split with 25 steps, and region split on a grid of 13 x 12, all without prompt bits.
        channel: SNR of the requests; by default Rayleigh fading at 10 dB, anew for each request.
        link: by default that of MEGSplitting as published: Shannon on 1 MHz, no radio energy.
        problem: by default least latency with at most 40 J at the device.
        episode_length: requests in an episode [1].
        is_pipelined: whether the edge computes while the previous request is on the air.
        battery_j: device energy of an episode [J]; inf is a device on mains.
        deadline_s: a request that takes longer is reported as late [s].
    """
    return EnvParams(
        **common_settings(profile_of(profile), schemes, channel, link, problem, default_link=Link()),
        episode_length=episode_length,
        is_pipelined=is_pipelined,
        battery_j=battery_j,
        deadline_s=deadline_s,
    )


def meg_cvpo(
    *,
    profile: str | Path | Profile = DEFAULT_CVPO_PROFILE,
    schemes: Schemes = None,
    metric: str = "psnr_db",
    episode_length: int = 64,
    is_pipelined: bool = True,
    k_factor_db: float = -np.inf,
    are_places_stratified: bool = False,
    bandwidth_hz: float = 1e6,
    limit_share: float | None = None,
) -> EnvParams:
    """Return the setting of MEG-CVPO on any profile with step and merging knobs.

    200 to 300 m, path loss 35.3 + 37.6 log10(d/m) dB, 30 dBm, noise -94 dBm, 1 MHz, 64 requests an episode, mean limits
    of 3 s and 1.8 kJ, pipelining. Its reward -log(MSE) is the peak SNR up to a factor: psnr_db = -10 log10(MSE).

    Args:
        profile: measured tables, or the name or folder of a profile.
        schemes: ways to share; by default model split with 4 to 12 steps, merge ratios from 0 to 0.9 and the paper's
            formula for the payload.
        metric: quality metric of the reward.
        episode_length: requests in an episode [1].
        is_pipelined: whether the edge computes while the previous request is on the air.
        k_factor_db: Rician factor [dB]; the paper states no small-scale fading, -inf is Rayleigh.
        are_places_stratified: whether devices that begin an episode together share the distances out evenly; one
            device alone is placed as without.
        bandwidth_hz: of the link [Hz]; less keeps the airtime of small latents beside the time of the edge.
        limit_share: None for the published limits; else both at this share of the way from the cheapest row to the
            best one, see `megopt.envs.limit_shares`.

    Raises:
        NotOfferedError: naming all that the profile lacks.

    Source: MEG-CVPO (arXiv 2407.07245).
    """
    tables = profile_of(profile)
    _require_step_and_merge_knobs(tables, metric)
    model_split = Conventional(
        num_steps=CVPO_STEPS,
        merge_ratios=CVPO_MERGE_RATIOS,
        payload="meg_cvpo",
        prompt_bits=0.0,
        ways=("model_split",),
    )
    limits = (Limit(quantity="latency_s", bound=3.0), Limit(quantity="energy_j", bound=1800.0))
    published = request(
        profile=tables,
        schemes=[model_split] if schemes is None else schemes,
        channel=LogDistance(k_factor_db=k_factor_db, are_places_stratified=are_places_stratified),
        link=Link(bandwidth_hz=bandwidth_hz),
        problem=Problem(objective="quality", metric=metric, limits=limits),
        episode_length=episode_length,
        is_pipelined=is_pipelined,
    )
    return published if limit_share is None else _with_limit_share(published, limit_share)


def _with_limit_share(params: EnvParams, share: float) -> EnvParams:
    problem = params.problem
    for limit, bound in zip(problem.limits, limit_bounds(params, share), strict=True):
        problem = problem.with_limit(limit.quantity, bound)
    return replace(params, problem=problem)


def _require_step_and_merge_knobs(profile: Profile, metric: str) -> None:
    """Raise `NotOfferedError` unless the profile times steps and merging and holds the metric over both knobs."""
    missing = [f"a row for {side} {part}" for side, part in _CVPO_PARTS if not profile.has(side, part)]
    rows = profile.quality[profile.quality["metric"] == str(metric)]
    for knob in ("num_steps", "merge_ratio"):
        if rows[knob].nunique() < 2:
            missing.append(f"{metric} at several values of {knob}")
    if missing:
        message = (
            f"scenario meg_cvpo: profile {profile.name} lacks {'; '.join(missing)}; "
            "choose a profile that holds them (`megopt info`), or the scenario request"
        )
        raise NotOfferedError(message)


def cell(
    *,
    profile: str | Path | Profile = DEFAULT_CELL_PROFILE,
    schemes: Schemes = None,
    channel: Channel | Said | None = None,
    link: Link | Said | None = None,
    problem: Problem | Said | None = None,
    num_devices: int = 8,
    slot_s: float = 2.0,
    arrivals: Arrivals | float | str | Path | Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    batch_slope: float = 1.0,
    allocation: str = "equal",
    capacity: int = 8,
    episode_length: int = 256,
    is_pipelined: bool = True,
    deadline_s: float = np.inf,
) -> CellParams:
    """Return the parameters of a cell of devices with an edge queue and a shared band.

    Args:
        profile: measured tables, or the name or folder of a profile; by default one with measured batches.
        schemes: ways to share, as in `request`.
        channel: SNR of the devices; by default Rayleigh fading at 10 dB, anew in each slot.
        link: link of a device alone in the band; by default Shannon on 20 MHz, no radio energy.
        problem: by default least latency with at most 40 J at the device.
        num_devices: devices of the cell.
        slot_s: length of a slot [s].
        arrivals: by default Poisson, 0.03 requests a second and device.
        max_batch: largest batch at the edge; None takes the largest measured, or 8 where one size was measured.
        batch_slope: growth of a batch's time per further member, for profiles that measured one size only [1].
        allocation: how the band is shared: equal, proportional, optimal, or chosen by the agent.
        capacity: requests that can wait at a device; more are lost.
        episode_length: slots in an episode [1].
        is_pipelined: whether the edge computes while the previous batch is on the air.
        deadline_s: a request that takes longer is reported as late [s].
    """
    tables = profile_of(profile)
    return CellParams(
        **common_settings(tables, schemes, channel, link, problem, default_link=_CELL_LINK),
        episode_length=episode_length,
        is_pipelined=is_pipelined,
        deadline_s=deadline_s,
        num_devices=num_devices,
        slot_s=slot_s,
        arrivals=Poisson() if arrivals is None else arrivals_of(arrivals),
        curve=BatchCurve.of(tables, max_batch=max_batch, slope=batch_slope),
        allocation=allocation,
        capacity=capacity,
    )


SCENARIOS: Scenarios = {"request": request, "meg_cvpo": meg_cvpo}
CELL_SCENARIOS: Scenarios = {"cell": cell}
