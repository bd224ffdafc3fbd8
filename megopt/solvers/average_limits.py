"""Long-run limits: the best way to choose rows when the limits hold on average over the channel, with a certificate.

For channel states s of weight w_s and rows a, with x the probability of row a in state s, this solves

    min_x sum_{s,a} w_s x_{s,a} objective_a(s)   subject to   sum_{s,a} w_s x_{s,a} cost_{a,i}(s) <= limit_i,   all i.

It is a linear program, solved through its Lagrangian dual (`average_limits_dual`): a bound on the optimum, and prices
of the limits. The optimum takes one row per state but for at most num_limits states, in which it randomises
(`average_limits_recovery`). Where the limits cannot be kept the status says so, and multipliers prove it.
Source: weak duality and Farkas; S. Boyd and L. Vandenberghe, Convex Optimization, chapter 5.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits_dual import Mixture, minimise
from megopt.solvers.average_limits_oracle import AffineOracle, Oracle
from megopt.solvers.average_limits_recovery import Split, recover
from megopt.solvers.average_limits_solution import AverageSolution, expanded, feasible, infeasible, none_served
from megopt.solvers.brute_force import RowCosts
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

__all__ = ["AverageSolution", "Mixture", "Split", "expanded", "limited_costs", "rows_under", "solve", "state_weights"]


def solve(
    table: ActionTable, link: LinkState, problem: Problem, weights: FloatArray | None = None, tolerance: float = 1e-9
) -> AverageSolution:
    """Return the best choice of rows under limits that hold on average, its certificate and its prices.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective, and limits on the means.
        weights: weight of each state, >= 0 [1], shape (num_states,); equal if None. They are normalised.
        tolerance: relative gap at which to stop.

    Raises:
        ProblemError: if the table or the sample is empty, a weight is negative, a quantity was not measured, or a cost
            or a time is negative.
    """
    start = time.perf_counter()
    row_costs, is_kept = limited_costs(table, link, problem)
    weights = state_weights(weights, len(link.snr))
    oracle = AffineOracle(row_costs, link, weights)
    if not np.any(weights[oracle.served] > 0.0):
        return none_served(problem, len(link.snr), start)
    most = _finite_ceilings(row_costs, oracle)
    found = minimise(oracle, most, tolerance)
    mixture = expanded(found.mixture, is_kept)
    unserved = int(np.count_nonzero(~oracle.served))
    if not found.is_feasible:
        solution = infeasible(problem, oracle, found, most, is_kept)
    else:
        choice = recover(oracle, found.mixture, weights, most)
        solution = feasible(table, link, problem, weights, choice, found, is_kept)
        if unserved:
            lost = f"{unserved} of {len(weights)} states have no row with finite costs and are left out"
            solution = replace(solution, status=Status.PARTLY_INFEASIBLE, message=lost)
    return replace(solution, mixture=mixture, runtime_s=time.perf_counter() - start)


def limited_costs(table: ActionTable, link: LinkState, problem: Problem) -> tuple[RowCosts, BoolArray]:
    """Return the costs of the rows under the limits that can bind, and which those are, shape (num_limits,).

    A ceiling of inf binds nowhere, but as in the per-request problem its cost has to be known.

    Raises:
        ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
    """
    full = RowCosts.of(table, link, problem)
    is_kept = full.ceilings < np.inf
    is_known = np.all([~np.isnan(cost.constant) for cost in (full.objective, *full.limits)], axis=0)
    kept = tuple(cost for cost, is_in in zip(full.limits, is_kept, strict=True) if is_in)
    known = replace(full.objective, constant=np.where(is_known, full.objective.constant, np.nan))
    return RowCosts(objective=known, limits=kept, ceilings=full.ceilings[is_kept]), is_kept


def state_weights(weights: FloatArray | None, num_states: int) -> FloatArray:
    """Return weights that sum to 1, shape (num_states,).

    Raises:
        ProblemError: if there are no states, or weights that are negative, not finite or all 0.
    """
    if num_states == 0:
        message = "long-run limits: the sample has 0 channel states; expected at least one; draw some from a channel"
        raise ProblemError(message)
    if weights is None:
        return np.full(num_states, 1.0 / num_states)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (num_states,) or not np.all(np.isfinite(given) & (given >= 0.0)) or not np.sum(given) > 0.0:
        message = (
            f"long-run limits: weights of shape {given.shape}, from {np.min(given, initial=np.inf):g} on; expected "
            f"({num_states},) weights >= 0 that are not all 0; pass one per state, or None for equal ones"
        )
        raise ProblemError(message)
    return given / np.sum(given)


def rows_under(table: ActionTable, link: LinkState, problem: Problem, prices: FloatArray) -> IntArray:
    """Return the row that is best in each state under `prices`, -1 where no row is finite; shape (num_states,).

    Args:
        table: rows to choose from.
        link: states, shape (num_states,); they need not be those of the solve.
        problem: objective and limits.
        prices: price of the objective and of each limited cost, >= 0, shape (1 + num_limits,).
    """
    if not len(link.snr):
        return np.zeros(0, dtype=np.int64)
    row_costs, is_kept = limited_costs(table, link, problem)
    oracle = AffineOracle(row_costs, link, state_weights(None, len(link.snr)))
    return oracle.rows(prices[np.append(True, is_kept)])


def _finite_ceilings(row_costs: RowCosts, oracle: Oracle) -> FloatArray:
    """Return the ceilings; one of -inf is replaced by a finite one that is out of reach as well."""
    most = row_costs.ceilings.copy()
    for number in np.flatnonzero(np.isneginf(most)):
        least = oracle.totals(np.eye(1 + len(most))[1 + number])[1 + number]
        most[number] = least - max(1.0, abs(least))
    return most
