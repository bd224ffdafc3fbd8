"""The best row for every channel state under per-request limits: exact, and the oracle for all other solvers.

For a state with link times (u_down, u_up) this solves, over the rows a of an action table,

    min_a objective_a(u)   subject to   cost_{a,i}(u) <= limit_i for all i,       all affine in u_down and u_up.

`solve_by_brute_force` evaluates every row in every state. `solve` gives the same rows from the lower envelope over u,
when the uplink time is a constant multiple of the downlink time or no row sends uplink; otherwise it falls back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.problem import Limit, Problem, evaluate, is_feasible
from megopt.schemes.action_table import ActionTable
from megopt.solvers import envelope
from megopt.solvers.brute_force import NOWHERE, RowCosts, choose, tiles
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState, uplink_ratio
from megopt.system.outcome import AffineCost
from megopt.tables.schema import METRIC_SENSES

_SCORED_AT_ONCE = 1 << 13
"""States scored at once, so that the arrays of `evaluate` stay in the cache."""


def solve(table: ActionTable, link: LinkState, problem: Problem) -> Solution:
    """Return the best row per state, from the lower envelope over the link time where it applies.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective and limits.

    Returns:
        Solution with the rows of `solve_by_brute_force`, state by state.

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    start = time.perf_counter()
    costs = RowCosts.of(table, link, problem)
    rows = rows_by_envelope(costs, link)
    if rows is None:
        rows = choose(costs, link.downlink_s_per_bit, link.uplink_s_per_bit)
    return _reported("exhaustive", table, link, problem, rows, start)


def solve_by_brute_force(
    table: ActionTable, link: LinkState, problem: Problem, chunk_states: int | None = None
) -> Solution:
    """Return the best row per state by evaluating every cost of every row in every state.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective and limits.
        chunk_states: states evaluated at once; as many as the cache holds if None.

    Returns:
        Solution; among equal objectives the lowest row.

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    start = time.perf_counter()
    costs = RowCosts.of(table, link, problem)
    rows = choose(costs, link.downlink_s_per_bit, link.uplink_s_per_bit, chunk_states)
    return _reported("exhaustive by brute force", table, link, problem, rows, start)


def rows_by_envelope(costs: RowCosts, link: LinkState) -> IntArray | None:
    """Return the best row per state, -1 where infeasible; None where the envelope does not apply."""
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
    ratio = uplink_ratio(link) if costs.uses_uplink else 0.0
    if ratio is None:
        return None
    pieces = _envelope(costs, ratio, end=float(np.max(down, where=np.isfinite(down), initial=0.0)))
    rows = pieces.at(down)
    unsure = np.flatnonzero(rows == envelope.UNSURE)
    if len(unsure):
        pairs = np.stack([down[unsure], up[unsure] if costs.uses_uplink else np.zeros(len(unsure))])
        distinct, which = np.unique(pairs, axis=1, return_inverse=True)
        rows[unsure] = choose(costs, distinct[0].copy(), distinct[1].copy())[which]
    return rows


def _envelope(costs: RowCosts, ratio: float, end: float) -> envelope.Envelope:
    """Return the best row as a function of u_down, with u_up = ratio u_down, for u_down up to `end` and in outage."""
    num_rows = len(costs.objective.constant)
    surely, possibly = np.full(num_rows, np.inf), np.full(num_rows, np.inf)
    for cost, ceiling in zip(costs.limits, costs.ceilings, strict=True):
        ends = envelope.reach(cost.constant, _slope(cost, ratio), float(ceiling))
        surely, possibly = np.minimum(surely, ends[0]), np.minimum(possibly, ends[1])
    if costs.is_objective_constant:
        return envelope.steps(costs.objective.constant, surely, possibly)
    return envelope.segments(costs.objective.constant, _slope(costs.objective, ratio), surely, possibly, end)


def _slope(cost: AffineCost, ratio: float) -> FloatArray:
    return cost.per_downlink + ratio * cost.per_uplink


def _reported(
    solver: str, table: ActionTable, link: LinkState, problem: Problem, rows: IntArray, start: float
) -> Solution:
    """Return the solution that `rows` are, every state scored anew by `evaluate`."""
    values = scored(table, link, problem, rows)
    message = _message(table, link, problem, rows) if np.any(rows == NOWHERE) else ""
    return Solution(
        solver=solver,
        status=Status.of(rows != NOWHERE),
        rows=rows,
        values=values,
        bounds=values.copy(),
        runtime_s=time.perf_counter() - start,
        message=message,
    )


def scored(table: ActionTable, link: LinkState, problem: Problem, rows: IntArray) -> FloatArray:
    """Return the objective of `rows` by `evaluate` [its unit], shape (num_states,); NaN where infeasible."""
    values = np.empty(len(rows))
    for tile in tiles(len(rows), _SCORED_AT_ONCE):
        is_answered = rows[tile] != NOWHERE
        result = evaluate(table, np.where(is_answered, rows[tile], 0), _states(link, tile), problem.metric)
        assert np.all(is_feasible(result, problem) | ~is_answered)
        values[tile] = np.where(is_answered, result.quantity(problem.objective), np.nan)
    return values


def _states(link: LinkState, which: slice) -> LinkState:
    """Return the link in some of its states."""
    return replace(
        link,
        snr=link.snr[which],
        downlink_s_per_bit=link.downlink_s_per_bit[which],
        uplink_s_per_bit=link.uplink_s_per_bit[which],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestLimit:
    """The tightest bound on one limit, the others kept, at which every state has a row within the limits.

    Attributes:
        limit: the limit as it was asked for.
        bound: the nearest bound [unit of the quantity]; inf, or -inf for a floor, where no bound on this limit helps.
        row: the row that becomes feasible in the worst state; -1 where no bound helps.
        name: "scheme: label" of that row; empty where no bound helps.
    """

    limit: Limit
    bound: float
    row: int
    name: str

    @property
    def is_within_reach(self) -> bool:
        """Whether moving this limit alone makes the problem feasible in every state."""
        return self.row != NOWHERE

    def __str__(self) -> str:
        if not self.is_within_reach:
            return f"{self.limit}: no bound on {self.limit.quantity} alone makes every state feasible"
        is_floor = self.bound < self.limit.bound
        shown = _rounded(self.bound, math.floor if is_floor else math.ceil)
        return f"{self.limit} is out of reach; the nearest feasible limit is {shown} ({self.name})"


def nearest_feasible_limit(table: ActionTable, link: LinkState, problem: Problem) -> str:
    """Return the nearest feasible limits in words, one clause per limit; empty if every state is feasible.

    Args and errors are those of `nearest_limits`.
    """
    return "; ".join(str(limit) for limit in nearest_limits(table, link, problem))


def nearest_limits(table: ActionTable, link: LinkState, problem: Problem) -> tuple[NearestLimit, ...]:
    """Return how far each limit would have to move, the others kept, for every state to have a row.

    Costs grow with both link times, so only states that no other state exceeds in both need to be looked at. States in
    outage, where only rows without payload are left, count once all others are feasible.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective and limits.

    Returns:
        One entry per limit, in their order; empty if every state is feasible, or the problem has no limits.

    Raises:
        ProblemError: as `solve`.
    """
    costs = RowCosts.of(table, link, problem)
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit if costs.uses_uplink else np.zeros(len(link.snr))
    is_dead = np.isinf(down) | np.isinf(up)
    for states in (np.flatnonzero(~is_dead), np.flatnonzero(is_dead)):
        worst = states[_undominated(down[states], up[states])][:, None]
        if not np.all(np.any(costs.usable(down[worst], up[worst])[1], axis=1)):
            numbers = range(len(problem.limits))
            return tuple(_nearest(table, problem, costs, number, down[worst], up[worst]) for number in numbers)
    return ()


def _nearest(
    table: ActionTable, problem: Problem, costs: RowCosts, number: int, down: FloatArray, up: FloatArray
) -> NearestLimit:
    """Return the nearest feasible bound of limit `number` over states of shape (num_worst, 1)."""
    lifted = np.where(np.arange(len(costs.ceilings)) == number, np.inf, costs.ceilings)
    _, is_usable = costs.usable(down, up, lifted)
    cost = np.where(is_usable, costs.limits[number].at(down, up), np.inf)
    row_of_state = np.argmin(cost, axis=1)
    least = cost[np.arange(len(cost)), row_of_state]
    state = int(np.argmax(least))
    limit, bound = problem.limits[number], float(least[state])
    row = int(row_of_state[state]) if np.isfinite(bound) else NOWHERE
    sense = METRIC_SENSES[problem.metric] if limit.quantity == "quality" else -1
    return NearestLimit(limit=limit, bound=-bound * sense, row=row, name=table.name(row) if row != NOWHERE else "")


def _undominated(down: FloatArray, up: FloatArray) -> IntArray:
    """Return the states that no other exceeds in both link times, shape (num_worst,)."""
    order = np.lexsort((-up, -down))
    highest_before = np.maximum.accumulate(np.append(-1.0, up[order]))[:-1]
    return order[up[order] > highest_before]


def _message(table: ActionTable, link: LinkState, problem: Problem, rows: IntArray) -> str:
    """Return what stands in the way in the infeasible states."""
    found = f"{np.count_nonzero(rows == NOWHERE)} of {len(rows)} states have no row within the limits"
    return f"{found}: {nearest_feasible_limit(table, link, problem) or f'{problem.objective} is infinite there'}"


def _rounded(bound: float, to_integer: Callable[[float], int]) -> str:
    """Return `bound` with four digits, rounded away from the infeasible side."""
    if bound == 0.0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(abs(bound))) - 3)
    return f"{to_integer(bound / unit) * unit:.4g}"
