"""Costs of rows before pipelining, what it hides of them, and the mixture of plans that keeps limits on their means.

With pipelining the edge computes a request while the payload of the one before is on the air:

    latency_t = edge_t - min(edge_t, airtime_{t-1}) + airtime_t + ...

So the latency of a request falls by its hidden time, min(edge time, airtime before), and nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.brute_force import RowCosts
from megopt.system.link import LinkState

PRICE_CEILING = 1e4
"""Largest price of a relative excess, over the spread of the objective, that is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiniteLimits:
    """The limits of a problem below inf.

    Attributes:
        numbers: which limits of the problem these are, shape (num_bounded,).
        most: what their costs may reach at most, shape (num_bounded,).
        scales: what an excess is relative to: the size of the limit, or 1 where that is 0, shape (num_bounded,).
    """

    numbers: IntArray
    most: FloatArray
    scales: FloatArray

    @classmethod
    def of(cls, problem: Problem) -> FiniteLimits:
        """Return the finite limits of a problem.

        Raises:
            ProblemError: if a limit is one that no row can keep, as a floor of inf on quality.
        """
        if np.any(np.isneginf(ceilings(problem))):
            stated = ", ".join(str(limit) for limit in problem.limits)
            message = f"limits: {stated} holds one that no row can keep; expected finite limits; set problem.limits"
            raise ProblemError(message)
        numbers = np.flatnonzero(ceilings(problem) < np.inf)
        most = ceilings(problem)[numbers]
        return cls(numbers=numbers, most=most, scales=np.where(most == 0.0, 1.0, np.abs(most)))


def worth_of(
    table: ActionTable, link: LinkState, problem: Problem, limits: FiniteLimits
) -> tuple[FloatArray, BoolArray]:
    """Return objective and relative excesses of all rows without anything hidden, and which rows are finite in all.

    The first has the shape (1 + num_bounded, num_requests, num_rows): inf in the objective, and no excess, where a row
    is not finite; the second (num_requests, num_rows).

    Args:
        table: rows to choose from.
        link: the link of each request, fields of shape (num_requests,).
        problem: objective and limits.
        limits: its finite limits.

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    costs = RowCosts.of(table, link, problem)
    down, up = link.downlink_s_per_bit[:, None], link.uplink_s_per_bit[:, None]
    value = costs.objective.at(down, up)
    limited = [costs.limits[number].at(down, up) for number in limits.numbers]
    excess = [(cost - most) / scale for cost, most, scale in zip(limited, limits.most, limits.scales, strict=True)]
    shape = (len(link.snr), len(table))
    worth = np.stack([np.broadcast_to(part, shape) for part in (value, *excess)])
    is_usable = np.all(np.isfinite(worth), axis=0)
    worth[0] = np.where(is_usable, worth[0], np.inf)
    worth[1:] = np.where(is_usable, worth[1:], 0.0)
    return worth, is_usable


def hidden_worths(problem: Problem, limits: FiniteLimits, *, is_pipelined: bool) -> FloatArray:
    """Return by how much objective and relative excesses fall with a hidden second [1/s], shape (1 + num_bounded,)."""
    names = [problem.objective, *(problem.limits[number].quantity for number in limits.numbers)]
    falls = np.array([float(name == "latency_s" and is_pipelined) for name in names])
    return np.asarray(falls / np.append(1.0, limits.scales))


def airtimes_s(payload_bits: FloatArray, link: LinkState) -> FloatArray:
    """Return the time of each payload on the downlink [s], shape (num_requests, num_payloads); 0 for none."""
    with np.errstate(invalid="ignore"):
        return np.where(payload_bits == 0.0, 0.0, payload_bits * link.downlink_s_per_bit[:, None])


def spread_of(objective: FloatArray) -> float:
    """Return the spread of the objective over rows and requests, or 1 where there is none."""
    known = objective[np.isfinite(objective)]
    return float(np.ptp(known)) or 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The mixture of plans that is best on average.

    Attributes:
        value: its mean objective, with excesses that no mixture avoids paid at the largest price.
        prices: multipliers of the excesses, over the spread of the objective, >= 0, shape (num_bounded,).
        shares: probability of each plan, shape (num_plans,).
    """

    value: float
    prices: FloatArray
    shares: FloatArray

    @property
    def is_feasible(self) -> bool:
        """Whether some mixture keeps the limits."""
        return not np.any(self.prices >= 0.999 * PRICE_CEILING)


def best_mix(plans: FloatArray, unit: float) -> Mix:
    """Return the shares of plans that cost least and keep the limits on their means.

    Args:
        plans: mean objective and relative excesses of each plan, shape (num_plans, 1 + num_bounded).
        unit: spread of the objective.
    """
    num_plans, num_limits = len(plans), plans.shape[1] - 1
    if not num_limits:
        shares = np.zeros(num_plans)
        shares[np.argmin(plans[:, 0])] = 1.0
        return Mix(value=float(np.min(plans[:, 0])), prices=np.zeros(0), shares=shares)
    cost = np.append(plans[:, 0] / unit, np.full(num_limits, PRICE_CEILING))
    upper = np.hstack([plans[:, 1:].T, -np.eye(num_limits)])
    whole = np.append(np.ones(num_plans), np.zeros(num_limits))[None]
    program = linear_program(cost, upper, np.zeros(num_limits), whole, np.ones(1))
    shares = np.maximum(program.x[:num_plans], 0.0)
    return Mix(value=program.value * unit, prices=np.maximum(program.prices, 0.0), shares=shares / shares.sum())
