"""What policies see that choose request after request: the costs of every row, run by run, and the limits that bind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.policies.base import Observation
from megopt.problem import Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.solvers.brute_force import RowCosts, tiles

_PAIRS_AT_ONCE = 1 << 18
"""Requests x rows whose costs are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineCosts:
    """Costs of all rows for a run of requests.

    Attributes:
        requests: which requests these are.
        value: objective, smaller is better; inf where a row cannot be chosen, shape (num_requests, num_rows).
        excess: (cost - limit) / scale per limit that binds; 0 where a row cannot be chosen, shape (num_requests,
            num_rows, num_bounded).
        is_served: which requests have a row with finite costs, shape (num_requests,).
    """

    requests: slice
    value: FloatArray
    excess: FloatArray
    is_served: BoolArray


def bounded_limits(policy: str, problem: Problem) -> IntArray:
    """Return the limits below inf, shape (num_bounded,).

    Raises:
        ProblemError: if a limit is one that no row can keep, as a floor of inf on quality.
    """
    most = ceilings(problem)
    if np.any(np.isneginf(most)):
        message = (
            f"policy {policy}: {', '.join(str(limit) for limit in problem.limits)} holds a limit that no row can keep; "
            "expected finite limits; set problem.limits"
        )
        raise ProblemError(message)
    return np.flatnonzero(most < np.inf)


def limit_scales(problem: Problem) -> FloatArray:
    """Return what an excess over each limit is relative to: its size, or 1 where that is 0; shape (num_limits,)."""
    size = np.abs(ceilings(problem))
    return np.where(size == 0.0, 1.0, size)


def online_costs(
    table: ActionTable, observation: Observation, problem: Problem, bounded: IntArray
) -> Iterator[OnlineCosts]:
    """Yield the costs of all rows for one run of requests after another, so that memory stays bounded.

    Of edge time that passes while the payload before is on the air, latency has nothing.

    Args:
        table: rows to choose from.
        observation: links of the requests, and with pipelining the airtimes before.
        problem: objective and limits.
        bounded: the limits below inf, shape (num_bounded,).

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    link, before_s = observation.link, observation.previous_airtime_s
    row_costs, scales = RowCosts.of(table, link, problem), limit_scales(problem)
    endless = np.full(len(row_costs.ceilings), np.inf)
    for requests in tiles(len(link.snr), max(1, _PAIRS_AT_ONCE // len(table))):
        down, up = link.downlink_s_per_bit[requests, None], link.uplink_s_per_bit[requests, None]
        hidden_s = 0.0 if before_s is None else np.minimum(table.work.edge_s, before_s[requests, None])
        value, is_usable = row_costs.usable(down, up, endless)
        value = value - hidden_s * (problem.objective == "latency_s")
        excess = np.zeros((*value.shape, len(bounded)))
        for column, number in enumerate(bounded):
            cost = row_costs.limits[number].at(down, up)
            cost = cost - hidden_s * (problem.limits[number].quantity == "latency_s")
            excess[..., column] = (cost - row_costs.ceilings[number]) / scales[number]
        is_usable &= np.all(np.isfinite(excess), axis=-1)
        yield OnlineCosts(
            requests=requests,
            value=np.where(is_usable, value, np.inf),
            excess=np.where(is_usable[..., None], excess, 0.0),
            is_served=np.any(is_usable, axis=1),
        )
