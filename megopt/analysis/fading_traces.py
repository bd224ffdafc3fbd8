"""The link that every request of a run meets: independent fading traces, one after another."""

from __future__ import annotations

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.errors import ConfigError
from megopt.ranges import require_whole
from megopt.system.fading import Channel
from megopt.system.link import Link, LinkState

MAX_SLOTS = 20_000_000
"""Fading slots of one run; more do not fit the memory of a small machine."""


def sample_link(config: DictConfig, *, is_fresh: bool = False) -> LinkState:
    """Return the traces of a verb's configuration: its keys channel, link, num_traces, num_requests, num_blocks, seed.

    Args:
        config: the configuration.
        is_fresh: whether to return as many traces of other devices, to score on what was solved for the first ones.

    Raises:
        ConfigError: as `fading_traces`.
    """
    numbers = {key: config[key] for key in ("num_traces", "num_requests", "num_blocks", "seed")}
    first = int(config.num_traces) if is_fresh else 0
    channel, link = instantiate(config.channel, _convert_="all"), instantiate(config.link)
    return fading_traces(channel, link, **numbers, first_trace=first)


def fading_traces(
    channel: Channel,
    link: Link,
    *,
    num_traces: int,
    num_requests: int,
    num_blocks: int,
    seed: int,
    first_trace: int = 0,
) -> LinkState:
    """Return the link of each request, shape (num_traces x num_requests,), trace after trace.

    Every trace is a new device and has its own seed.

    Args:
        channel: where the SNR comes from.
        link: from SNR to seconds and joules per bit.
        num_traces: independent traces.
        num_requests: requests on each trace.
        num_blocks: fading blocks that one payload spans.
        seed: of the traces.
        first_trace: number of the first trace; traces of different numbers are independent.

    Raises:
        ConfigError: if a number is no whole number in its range, or there are too many slots.
    """
    require_whole("tradeoff", 1, num_requests=num_requests, num_traces=num_traces)
    require_whole("tradeoff", 1, num_blocks=num_blocks)
    require_whole("tradeoff", 0, seed=seed)
    if (num := num_traces * num_requests * num_blocks) > MAX_SLOTS:
        message = f"num_traces x num_requests x num_blocks = {num:,}; expected at most {MAX_SLOTS:,}; lower one of them"
        raise ConfigError(message)
    seeds = np.random.SeedSequence(seed).spawn(first_trace + num_traces)[first_trace:]
    paths = [channel.sample_snr(np.random.default_rng(child), num_requests * num_blocks)[:, 0] for child in seeds]
    return link.state(np.concatenate(paths).reshape(-1, num_blocks))
