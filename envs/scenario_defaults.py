"""What scenarios have in common: the ways to share and the problem where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from megopt.envs.settings import Said, channel_of, link_of, problem_of, schemes_of
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.region_split import RegionSplit
from megopt.schemes.scheme import Scheme, compile_all
from megopt.schemes.step_split import StepSplit
from megopt.system.channel import Channel, Rayleigh
from megopt.system.link import Link
from megopt.tables.profile import Profile

Schemes = Scheme | Said | Sequence[Scheme | Said] | None
"""Ways to share, or their names; None leaves the choice to the scenario."""


class Common(TypedDict):
    """The keywords of `EnvParams` that all scenarios settle in the same way."""

    table: ActionTable
    link: Link
    channel: Channel
    problem: Problem


def common_settings(
    profile: Profile,
    schemes: Schemes,
    channel: Channel | Said | None,
    link: Link | Said | None,
    problem: Problem | Said | None,
    *,
    default_link: Link,
) -> Common:
    """Return what was said of these settings, and Rayleigh fading at 10 dB and the default problem where nothing was.

    Args:
        profile: measured tables.
        schemes: ways to share.
        channel: SNR of the requests; one whose noise band is left open takes that of the link.
        link: link of a device.
        problem: reward and costs.
        default_link: link where nothing was said of it.
    """
    table = table_of(schemes, profile)
    own_link = default_link if link is None else link_of(link, default_link)
    return {
        "table": table,
        "link": own_link,
        "channel": Rayleigh(snr_db=10.0) if channel is None else channel_of(channel, own_link),
        "problem": default_problem(table) if problem is None else problem_of(problem, table),
    }


def table_of(schemes: Schemes, profile: Profile) -> ActionTable:
    """Return the rows of `schemes`, by default those of `request`."""
    default: list[Scheme] = [
        Conventional(num_steps=(25,), prompt_bits=0.0),
        StepSplit(num_steps=(25,), prompt_bits=0.0),
        RegionSplit(num_region_ratios=13, num_device_powers=12, prompt_bits=0.0),
    ]
    table, _ = compile_all(default if schemes is None else schemes_of(schemes), profile)
    return table


def default_problem(table: ActionTable) -> Problem:
    """Return least latency with 40 J at the device; SSIM is reported where the table holds it."""
    limits = (Limit(quantity="device_energy_j", bound=40.0),)
    return Problem(objective="latency_s", metric="ssim" if "ssim" in table.metrics else "", limits=limits)
