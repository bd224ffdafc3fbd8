"""The long-run problem as one linear program with a variable per state and row: slow, exact, the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import state_weights
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

_MOST_PAIRS = 4_000_000
"""States x rows beyond which the program does not fit a small machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LpOptimum:
    """What HiGHS says of the whole program.

    Attributes:
        status: optimal or infeasible.
        value: mean objective over the states [unit of the objective]; NaN if infeasible.
        prices: multiplier of each limit, >= 0, shape (num_limits,); NaN if infeasible.
        runtime_s: wall time of the linear program alone [s].
    """

    status: Status
    value: float
    prices: FloatArray
    runtime_s: float


def solve_by_lp(
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    weights: FloatArray | None = None,
    method: str = "highs-ds",
) -> LpOptimum:
    """Return the optimum of the linear program over all pairs of state and row, by HiGHS.

    Every pair is scored by `problem.evaluate`; a pair with a cost that is not finite is left out, and so are states
    without any pair.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective, and limits on the means.
        weights: weight of each state [1], shape (num_states,); equal if None.
        method: of HiGHS, see `linear_program`.

    Raises:
        ProblemError: if there are more than four million pairs.
    """
    from scipy import sparse

    num_states, num_rows = len(link.snr), len(table)
    if num_states * num_rows > _MOST_PAIRS:
        message = (
            f"linear program: {num_states} states x {num_rows} rows; expected at most {_MOST_PAIRS:,} pairs; "
            "use average_limits.solve, or fewer states"
        )
        raise ProblemError(message)
    states = np.repeat(np.arange(num_states), num_rows)
    result = evaluate(table, np.tile(np.arange(num_rows), num_states), link.take(states), problem.metric)
    value, cost, most = objective(result, problem), costs(result, problem), ceilings(problem)
    is_in = np.isfinite(value) & np.all(np.isfinite(cost[:, most < np.inf]), axis=1) & ~np.any(np.isnan(cost), axis=1)
    served, column_state = np.unique(states[is_in], return_inverse=True)
    weight = state_weights(weights, num_states)[served]
    weight = weight / np.sum(weight)
    bounded = np.flatnonzero(most < np.inf)
    start = time.perf_counter()
    program = linear_program(
        weight[column_state] * value[is_in],
        (weight[column_state, None] * cost[is_in][:, bounded]).T,
        np.maximum(most[bounded], -1e30),
        sparse.csr_array((np.ones(len(column_state)), (column_state, np.arange(len(column_state))))),
        np.ones(len(served)),
        method,
    )
    runtime_s = time.perf_counter() - start
    if not program.is_feasible:
        nothing = np.full(len(most), np.nan)
        return LpOptimum(status=Status.INFEASIBLE, value=np.nan, prices=nothing, runtime_s=runtime_s)
    prices = np.zeros(len(most))
    prices[bounded] = program.prices
    return LpOptimum(status=Status.OPTIMAL, value=problem.sense * program.value, prices=prices, runtime_s=runtime_s)
