"""The best row for every channel state under per-request limits: exact, and the oracle for all other solvers.

For a state with link times (u_down, u_up) this solves, over the rows a of an action table,

    min_a objective_a(u)   subject to   cost_{a,i}(u) <= limit_i for all i,       all affine in u_down and u_up.

`solve_by_brute_force` evaluates every row in every state. `solve` gives the same rows from the lower envelope over u,
when the uplink time is a constant multiple of the downlink time or no row sends uplink; otherwise it falls back.
"""

from __future__ import annotations

import time

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.problem import Problem, ceilings, costs, evaluate
from megopt.schemes.action_table import ActionTable
from megopt.solvers import envelope
from megopt.solvers.brute_force import NOWHERE, RowCosts, choose, tiles
from megopt.solvers.feasibility import nearest_feasible_limit
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState, uplink_ratio

__all__ = ["nearest_feasible_limit", "rows_by_envelope", "scored", "solve", "solve_by_brute_force"]

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
    row_costs = RowCosts.of(table, link, problem)
    rows = rows_by_envelope(row_costs, link)
    if rows is None:
        rows = choose(row_costs, link.downlink_s_per_bit, link.uplink_s_per_bit)
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
    row_costs = RowCosts.of(table, link, problem)
    rows = choose(row_costs, link.downlink_s_per_bit, link.uplink_s_per_bit, chunk_states)
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
        ends = envelope.reach(cost.constant, cost.per_downlink + ratio * cost.per_uplink, float(ceiling))
        surely, possibly = np.minimum(surely, ends[0]), np.minimum(possibly, ends[1])
    if costs.is_objective_constant:
        return envelope.steps(costs.objective.constant, surely, possibly)
    return envelope.segments(costs.objective, ratio, surely, possibly, end)


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
    values, most = np.full(len(rows), np.nan), ceilings(problem)
    answered = np.flatnonzero(rows != NOWHERE)
    for tile in tiles(len(answered), _SCORED_AT_ONCE):
        states = answered[tile]
        result = evaluate(table, rows[states], link.take(states), problem.metric)
        assert np.all(costs(result, problem) <= most)
        values[states] = result.quantity(problem.objective)
    return values


def _message(table: ActionTable, link: LinkState, problem: Problem, rows: IntArray) -> str:
    """Return what stands in the way in the infeasible states."""
    lost = np.flatnonzero(rows == NOWHERE)
    nearest = nearest_feasible_limit(table, link.take(lost), problem) or f"{problem.objective} is infinite there"
    return f"{len(lost)} of {len(rows)} states have no row within the limits: {nearest}"
