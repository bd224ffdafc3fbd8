"""What stands in the way of a feasible answer: how far each limit would have to move, and which row it would admit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers.brute_force import NOWHERE, RowCosts, tiles
from megopt.system.link import LinkState

_EXCESSES_AT_ONCE = 1 << 18
"""States x rows whose excess is held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestLimit:
    """The tightest bound on one limit, the others kept, at which every state has a row within the limits.

    Attributes:
        limit: the limit as it was asked for.
        bound: the nearest bound [unit of the quantity]; NaN where no bound on this limit alone helps.
        row: the row that it admits in the worst state; -1 where no bound helps.
        name: "scheme: label" of that row; empty where no bound helps.
    """

    limit: Limit
    bound: float
    row: int
    name: str

    @property
    def is_within_reach(self) -> bool:
        """Whether moving this limit alone makes every state feasible."""
        return self.row != NOWHERE

    def __str__(self) -> str:
        if not self.is_within_reach:
            return f"{self.limit}: no other bound on it alone is enough"
        side = "above" if self.bound < self.limit.bound else "below"
        return f"{self.limit} is {side} what any row reaches; the nearest feasible limit is {self.shown} ({self.name})"

    @property
    def shown(self) -> str:
        """The bound with four digits, rounded to the feasible side."""
        nearest, is_floor = f"{self.bound:.4g}", self.bound < self.limit.bound
        if float(nearest) == self.bound or (float(nearest) < self.bound) == is_floor:
            return nearest
        unit = 10.0 ** (math.floor(math.log10(abs(self.bound))) - 3)
        return f"{(math.floor if is_floor else math.ceil)(self.bound / unit) * unit:.4g}"


def nearest_feasible_limit(table: ActionTable, link: LinkState, problem: Problem) -> str:
    """Return the nearest feasible limits in words; empty if every state is feasible.

    One clause per limit that helps on its own; if none does, the bounds that help together. Args and errors are those
    of `nearest_limits`.
    """
    nearest = nearest_limits(table, link, problem)
    alone = [str(limit) for limit in nearest if limit.is_within_reach]
    if alone or not nearest:
        return "; ".join(alone)
    together = nearest_limits_together(table, link, problem)
    if not together:
        return "no row has a finite cost there, whatever the limits"
    asked, found = " and ".join(str(one.limit) for one in together), " and ".join(one.shown for one in together)
    return f"{asked} are out of reach together; the nearest feasible limits are {found} ({together[0].name})"


def nearest_limits(table: ActionTable, link: LinkState, problem: Problem) -> tuple[NearestLimit, ...]:
    """Return how far each limit would have to move, the others kept, for every state to have a row.

    States in outage, where only rows without payload are left, count once all others are feasible.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective and limits.

    Returns:
        One entry per limit, in their order; empty if every state is feasible, or the problem has no limits.

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    costs = RowCosts.of(table, link, problem)
    down, up = _worst_infeasible(costs, link)
    if not down.size:
        return ()
    nearest = []
    for number, limit in enumerate(problem.limits):
        lifted = np.where(np.arange(len(problem.limits)) == number, np.inf, costs.ceilings)
        _, is_usable = costs.usable(down, up, lifted)
        cost = np.where(is_usable, costs.limits[number].at(down, up), np.inf)
        row, least = np.argmin(cost, axis=1), np.min(cost, axis=1)
        state = int(np.argmax(least))
        nearest.append(_nearest(table, problem, limit, int(row[state]), float(least[state])))
    return tuple(nearest)


def nearest_limits_together(table: ActionTable, link: LinkState, problem: Problem) -> tuple[NearestLimit, ...]:
    """Return the limits that have to move, for the row that exceeds its limits least in the state where that is most.

    The excess of a row is its largest relative excess over a limit. Args and errors are those of `nearest_limits`.
    """
    costs = RowCosts.of(table, link, problem)
    down, up = _worst_infeasible(costs, link)
    if not down.size or not problem.limits:
        return ()
    cost, excess = _excess(costs, down, up)
    row, least = np.argmin(excess, axis=1), np.min(excess, axis=1)
    state = int(np.argmax(least))
    if np.isinf(least[state]):
        return ()
    needed = np.max(cost[np.arange(len(row)), row], axis=0)
    return tuple(
        _nearest(table, problem, limit, int(row[state]), float(needed[number]))
        for number, limit in enumerate(problem.limits)
        if needed[number] > costs.ceilings[number]
    )


def least_violating_rows(table: ActionTable, link: LinkState, problem: Problem) -> IntArray:
    """Return for each state the row whose largest relative excess over a limit is smallest, shape (num_states,).

    Where every row is in outage or unmeasured it is the row of lowest number. Args and errors as in `nearest_limits`.
    """
    costs = RowCosts.of(table, link, problem)
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
    rows = np.empty(len(down), dtype=np.int64)
    for tile in tiles(len(down), max(1, _EXCESSES_AT_ONCE // len(table))):
        rows[tile] = np.argmin(_excess(costs, down[tile, None], up[tile, None])[1], axis=1)
    return rows


def _excess(costs: RowCosts, down: FloatArray, up: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return limited costs (num_states, num_rows, num_limits) and largest relative excess (num_states, num_rows).

    The excess of a row without a finite cost is inf; below 0 it says how far a row stays within its limits.
    """
    cost = np.stack([limit.at(down, up) for limit in costs.limits], axis=-1)
    scale = np.where(np.isfinite(costs.ceilings), np.maximum(np.abs(costs.ceilings), 1e-12), 1.0)
    with np.errstate(invalid="ignore"):
        over = np.where(np.isinf(costs.ceilings) & np.isfinite(cost), -np.inf, (cost - costs.ceilings) / scale)
    excess = np.max(over, axis=-1)
    is_usable = costs.usable(down, up, np.full(len(costs.ceilings), np.inf))[1]
    return cost, np.where(is_usable & ~np.isnan(excess) & (excess < np.inf), excess, np.inf)


def _nearest(table: ActionTable, problem: Problem, limit: Limit, row: int, cost: float) -> NearestLimit:
    """Return the limit moved to `cost`, whose sign makes smaller better; out of reach where that is infinite."""
    if not np.isfinite(cost):
        return NearestLimit(limit=limit, bound=np.nan, row=NOWHERE, name="")
    bound = problem.sense_of(limit.quantity) * cost
    return NearestLimit(limit=limit, bound=bound, row=row, name=table.name(row))


def _worst_infeasible(costs: RowCosts, link: LinkState) -> tuple[FloatArray, FloatArray]:
    """Return the link times of the states to look at, shape (num_worst, 1) each; none if every state is feasible.

    Costs grow with both times, so these are the states that no other state exceeds in both.
    """
    down = link.downlink_s_per_bit
    up = link.uplink_s_per_bit if costs.uses_uplink else np.zeros(len(down))
    is_dead = np.isinf(down) | np.isinf(up)
    for states in (np.flatnonzero(~is_dead), np.flatnonzero(is_dead)):
        worst = states[_undominated(down[states], up[states])][:, None]
        if not np.all(np.any(costs.usable(down[worst], up[worst])[1], axis=1)):
            return down[worst], up[worst]
    return np.zeros((0, 1)), np.zeros((0, 1))


def _undominated(down: FloatArray, up: FloatArray) -> IntArray:
    """Return the states that no other exceeds in both link times, shape (num_worst,)."""
    if not np.any(up):
        return np.array([np.argmax(down)] if len(down) else [], dtype=np.int64)
    order = np.lexsort((-up, -down))
    highest_before = np.maximum.accumulate(np.append(-1.0, up[order]))[:-1]
    return order[up[order] > highest_before]
