"""What does not change while requests come to the devices of `megopt/Request-v0`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray
from megopt.envs.row_terms import RowTerms
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Problem, affine_cost
from megopt.ranges import require_number, require_whole
from megopt.schemes.action_table import ActionTable
from megopt.system.channel import Channel, Trace
from megopt.system.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvParams:
    """What does not change while requests come.

    Attributes:
        table: rows to choose from.
        link: from SNR to seconds and joules per bit.
        channel: where the SNR of each request comes from.
        problem: reward and costs.
        episode_length: requests in an episode [1].
        is_pipelined: whether the edge computes while the previous request is on the air.
        battery_j: device energy of an episode [J]; the episode ends when it is used up. inf is a device on mains.
        deadline_s: a request that takes longer is reported as late [s].
        terms: coefficients of every row, compiled once.
        is_offered: rows whose objective and costs are known and finite, shape (num_rows,); the others are masked.
        needs_link: rows that send a payload, shape (num_rows,); masked in addition while the link is dead.
        can_die: whether the link can carry nothing at times.
        scales: airtime [s], latency [s] and energy [J] that the observation shows as 1/2, shape (3, 1).

    Raises:
        ConfigError: for a number outside its range, or a link that can die where every row needs it.
        ProblemError: if no row has a known objective and known costs, or a battery meets rows without device energy.
    """

    table: ActionTable
    link: Link
    channel: Channel
    problem: Problem
    episode_length: int = 64
    is_pipelined: bool = False
    battery_j: float = np.inf
    deadline_s: float = np.inf
    terms: RowTerms = field(init=False, repr=False)
    is_offered: BoolArray = field(init=False, repr=False)
    needs_link: BoolArray = field(init=False, repr=False)
    can_die: bool = field(init=False)
    scales: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_whole("environment", 1, episode_length=self.episode_length)
        is_pipelined: object = self.is_pipelined
        if not isinstance(is_pipelined, bool):
            message = f"environment: is_pipelined is {is_pipelined!r}; expected true or false; change is_pipelined"
            raise ConfigError(message)
        for name in ("battery_j", "deadline_s"):
            require_number("environment", 1e-9, np.inf, **{name: getattr(self, name)})
        derived = {
            "terms": RowTerms.of(self.table, self.link, self.problem.metric),
            "is_offered": _is_offered(self),
            "can_die": _can_die(self.link, self.channel),
            "needs_link": (self.table.work.downlink_bits > 0) | (self.table.work.uplink_bits > 0),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        self._check()
        scales = [self._scale("latency_s"), self._scale("latency_s"), self._scale(self.terms.observed_energy)]
        object.__setattr__(self, "scales", np.array(scales, dtype=np.float32)[:, np.newaxis])

    def _check(self) -> None:
        if not np.any(self.is_offered):
            message = (
                f"environment: no row of profile {self.table.profile} has a finite {self.problem.objective} and finite "
                "costs of all limits; choose another objective or limits, or a profile that holds them (`megopt info`)"
            )
            raise ProblemError(message)
        if self.has_battery and np.any(np.isnan(self.table.work.device_energy_j[self.is_offered])):
            message = (
                f"environment: battery_j = {self.battery_j:g}, but profile {self.table.profile} has rows without "
                "device energy; leave battery_j out, or choose schemes and a profile that hold it"
            )
            raise ProblemError(message)
        if self.can_die and np.all(self.needs_link[self.is_offered]):
            message = (
                "environment: the link can carry nothing at times (CQI 0, or a trace with an outage), and every row "
                "needs it; add a scheme that can do without (device only), or choose link adaptation shannon"
            )
            raise ConfigError(message)

    @property
    def has_battery(self) -> bool:
        """Whether the device can run out of energy."""
        return self.battery_j < np.inf

    @property
    def has_deadline(self) -> bool:
        """Whether requests can be late."""
        return self.deadline_s < np.inf

    def _scale(self, quantity: str) -> float:
        """Return the limit of a quantity, or what its median row costs at 10 dB; 1 where it was not measured."""
        bounds = [limit.bound for limit in self.problem.limits if limit.quantity == quantity and limit.bound > 0]
        if bounds or quantity not in self.terms.measured:
            return float(bounds[0]) if bounds else 1.0
        link = self.link.state(np.array([10.0]))
        cost = affine_cost(self.table, link, self.problem, quantity)
        values = cost.at(link.downlink_s_per_bit, link.uplink_s_per_bit)
        usable = values[np.isfinite(values) & (values > 0)]
        return float(np.median(usable)) if len(usable) else 1.0


def _can_die(link: Link, channel: Channel) -> bool:
    """Return whether an SNR below CQI 1, or a recorded outage, can stop the link."""
    has_outage = isinstance(channel, Trace) and bool(np.any(channel.recorded_snr == 0.0))
    return link.adaptation == "cqi" or has_outage


def _is_offered(params: EnvParams) -> BoolArray:
    """Return the rows whose objective and costs are finite on a living link, shape (num_rows,)."""
    link = params.link.state(np.array([1e6]))
    quantities = (params.problem.objective, *(limit.quantity for limit in params.problem.limits))
    constants = [affine_cost(params.table, link, params.problem, quantity).constant for quantity in quantities]
    return np.asarray(np.all(np.isfinite(constants), axis=0))
