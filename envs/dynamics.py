"""Request by request: pure, batched state, transition and observation; the environments are shells around these.

A row of the batch is one device with one request at a time. The waiting request meets the link state; the chosen row of
the action table gives its outcome; then the channel moves on by one slot. With pipelining the edge computes a request
while the previous one is still on the air, so that execution takes

    max(t_edge - t_air,previous, 0) + t_air

Reward and costs of an outcome are those of `megopt.problem`; nothing here defines them.
Source: MEG-CVPO (arXiv 2407.07245) for state, episode and pipelining.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.parameters import EnvParams
from megopt.system.channel import ChannelState
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome
from megopt.units import write_db

__all__ = [
    "FIELDS",
    "SNR_RANGE_DB",
    "EnvParams",
    "EnvState",
    "Transition",
    "initial",
    "is_link_dead",
    "legal_rows",
    "link_where",
    "observe",
    "transition",
]

SNR_RANGE_DB = (-30.0, 50.0)
"""SNR [dB] that the observation shows as -1 and 1."""
_SMALLEST = np.float32(1e-30)
"""SNR in whose place 0 is taken, below the range that is shown [1]."""
FIELDS = ("snr", "previous_airtime", "previous_latency", "previous_energy", "battery", "progress")
"""Fields of an observation, in order; `megopt.envs.request` holds the data sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvState:
    """What the devices are in before their next request is decided; all fields have the shape (num_envs,).

    Attributes:
        channel: state of the channel.
        link: link that the waiting request meets.
        previous_airtime_s: time of the previous payload on the downlink [s]; 0 at the start.
        previous_latency_s: latency of the previous request [s]; 0 at the start.
        previous_energy_j: energy of the previous request [J]; 0 at the start.
        battery_j: energy left in the device [J]; inf on mains.
    """

    channel: ChannelState
    link: LinkState
    previous_airtime_s: FloatArray
    previous_latency_s: FloatArray
    previous_energy_j: FloatArray
    battery_j: FloatArray

    @property
    def num_requests(self) -> IntArray:
        """Requests of this episode so far [1]: one slot of the channel each."""
        return self.channel.slot

    def where(self, is_fresh: BoolArray, fresh: EnvState) -> EnvState:
        """Return `fresh` in the rows where `is_fresh` (num_envs,) and this state in the others."""
        if np.all(is_fresh):
            return fresh
        return EnvState(
            channel=self.channel.where(is_fresh, fresh.channel),
            link=link_where(is_fresh, fresh.link, self.link),
            previous_airtime_s=np.where(is_fresh, fresh.previous_airtime_s, self.previous_airtime_s),
            previous_latency_s=np.where(is_fresh, fresh.previous_latency_s, self.previous_latency_s),
            previous_energy_j=np.where(is_fresh, fresh.previous_energy_j, self.previous_energy_j),
            battery_j=np.where(is_fresh, fresh.battery_j, self.battery_j),
        )


def link_where(is_fresh: BoolArray, fresh: LinkState, old: LinkState) -> LinkState:
    """Return the link `fresh` where `is_fresh` and `old` elsewhere; all of shape (num_devices,)."""
    return replace(
        old,
        snr=np.where(is_fresh, fresh.snr, old.snr),
        downlink_s_per_bit=np.where(is_fresh, fresh.downlink_s_per_bit, old.downlink_s_per_bit),
        uplink_s_per_bit=np.where(is_fresh, fresh.uplink_s_per_bit, old.uplink_s_per_bit),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """What one request led to; fields of shape (num_envs,).

    Attributes:
        state: the state before the next request.
        outcome: what the request cost and gave; only the columns of `RowTerms.measured` are filled.
        is_terminated: whether the battery is used up.
        is_truncated: whether the episode has had all its requests.
    """

    state: EnvState
    outcome: Outcome
    is_terminated: BoolArray
    is_truncated: BoolArray


def initial(params: EnvParams, rng: np.random.Generator, num_envs: int) -> EnvState:
    """Return the first state of `num_envs` new episodes."""
    channel = params.channel.initial(rng, num_envs)
    zero = np.zeros(num_envs)
    return EnvState(
        channel=channel,
        link=params.link.state(params.channel.snr(channel)),
        previous_airtime_s=zero,
        previous_latency_s=zero,
        previous_energy_j=zero,
        battery_j=np.full(num_envs, float(params.battery_j)),
    )


def transition(params: EnvParams, state: EnvState, rows: IntArray, rng: np.random.Generator) -> Transition:
    """Return what the waiting requests lead to when they take `rows`.

    Args:
        params: the environment.
        state: states, fields of shape (num_envs,).
        rows: legal rows of the action table, shape (num_envs,).
        rng: generator of the channel's innovations; as much is drawn whatever the rows are.
    """
    outcome = params.terms.outcome(
        rows,
        state.link,
        is_alive=not params.can_die,
        previous_airtime_s=state.previous_airtime_s if params.is_pipelined else None,
    )
    channel = params.channel.advance(rng, state.channel)
    battery_j = state.battery_j - outcome.device_energy_j if params.has_battery else state.battery_j
    following = EnvState(
        channel=channel,
        link=params.link.state(params.channel.snr(channel)),
        previous_airtime_s=outcome.downlink_s,
        previous_latency_s=outcome.latency_s,
        previous_energy_j=outcome.quantity(params.terms.observed_energy),
        battery_j=battery_j,
    )
    return Transition(
        state=following,
        outcome=outcome,
        is_terminated=battery_j <= 0.0 if params.has_battery else np.zeros(len(rows), dtype=bool),
        is_truncated=channel.slot >= params.episode_length,
    )


def observe(params: EnvParams, state: EnvState) -> NDArray[np.float32]:
    """Return what an agent sees, shape (num_envs, len(FIELDS)), float32 within [-1, 1].

    Args:
        params: the environment.
        state: states, fields of shape (num_envs,).
    """
    seen = np.empty((len(FIELDS), len(state.num_requests)), dtype=np.float32)
    _scaled_snr(state.link.snr, seen[0])
    seen[1] = state.previous_airtime_s
    seen[2] = state.previous_latency_s
    seen[3] = state.previous_energy_j if params.terms.observed_energy in params.terms.measured else 0.0
    seen[1:4] /= seen[1:4] + params.scales
    seen[4] = np.maximum(state.battery_j / params.battery_j, 0.0) if params.has_battery else 1.0
    seen[5] = state.num_requests
    seen[5] *= np.float32(1.0 / params.episode_length)
    return seen.T


def _scaled_snr(snr: FloatArray, out: NDArray[np.float32]) -> None:
    """Write the SNR in dB, its range laid on [-1, 1] and ended there."""
    low, high = SNR_RANGE_DB
    out[...] = snr
    np.maximum(out, _SMALLEST, out=out)
    write_db(out)
    out *= np.float32(2.0 / (high - low))
    out -= np.float32((high + low) / (high - low))
    np.maximum(out, np.float32(-1.0), out=out)
    np.minimum(out, np.float32(1.0), out=out)


def legal_rows(params: EnvParams, link: LinkState) -> BoolArray:
    """Return which rows may be chosen, shape (num_envs, num_rows); a read-only view where all links are alive.

    Args:
        params: the environment.
        link: the link that each request meets, fields of shape (num_envs,).
    """
    shape = (len(link.snr), len(params.table))
    is_dead = is_link_dead(params, link)
    if not np.any(is_dead):
        return np.broadcast_to(params.is_offered, shape)
    return np.asarray(params.is_offered & ~(is_dead[:, np.newaxis] & params.needs_link))


def is_link_dead(params: EnvParams, link: LinkState) -> BoolArray:
    """Return which links carry nothing in one of the directions, shape (num_envs,)."""
    if not params.can_die:
        return np.broadcast_to(False, len(link.snr))
    return np.asarray(np.isinf(link.downlink_s_per_bit) | np.isinf(link.uplink_s_per_bit))
