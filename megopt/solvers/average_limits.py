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
from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits_dual import DualOptimum, Mixture, minimise
from megopt.solvers.average_limits_oracle import AffineOracle, Oracle
from megopt.solvers.average_limits_reach import least_means
from megopt.solvers.average_limits_recovery import Choice, Split, recover
from megopt.solvers.brute_force import NOWHERE, RowCosts, tiles
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

__all__ = ["AverageSolution", "Mixture", "Split", "expanded", "limited_costs", "rows_under", "solve", "state_weights"]

_SCORED_AT_ONCE = 1 << 13
"""States scored at once, so that the arrays of `evaluate` stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageSolution:
    """What long-run limits allow over `num_states` channel states.

    Attributes:
        solver: name of the solver.
        status: optimal; partly infeasible if some states have no row with finite costs (averages are then over the
            others); infeasible if no way to choose rows keeps the limits on average.
        value: mean objective of the choice by `problem.evaluate` [unit of the objective]; NaN if infeasible.
        bound: certified bound on the mean objective of any choice (below for min, above for max); NaN if infeasible.
        costs: mean limited costs of the choice as in `problem.costs`, shape (num_limits,); those of the least excess
            if infeasible.
        prices: what a unit of each limit is worth in units of the objective, >= 0, shape (num_limits,). If infeasible,
            the multipliers that prove it: the mean of prices . (cost - limit) is `proof` > 0 or more for every choice.
        proof: see `prices`; 0 if feasible.
        rows: row of each state, the most probable where it randomises, -1 where none; shape (num_states,).
        splits: the states that randomise, at most one per limit.
        mixture: the choice as prices to follow, for states outside the sample; see `rows_under`.
        reachable: least mean of each cost with the other limits kept, as in `problem.costs`, shape (num_limits,);
            NaN where they cannot be kept, and everywhere if feasible.
        num_iterations: prices that were tried.
        runtime_s: wall time of the solve [s].
        message: what to know besides, for example the least reachable value of a limit.
    """

    solver: str
    status: Status
    value: float
    bound: float
    costs: FloatArray
    prices: FloatArray
    proof: float
    rows: IntArray
    splits: tuple[Split, ...]
    mixture: Mixture
    reachable: FloatArray
    num_iterations: int
    runtime_s: float
    message: str = ""

    @property
    def gap(self) -> float:
        """Relative distance |value - bound| / max(|bound|, 1e-12)."""
        return abs(self.value - self.bound) / max(abs(self.bound), 1e-12)

    @property
    def is_served(self) -> BoolArray:
        """Which states have a row, shape (num_states,)."""
        return np.asarray(self.rows != NOWHERE)


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
        return _unserved(problem, len(link.snr), start)
    most = _finite_ceilings(row_costs, oracle)
    found = minimise(oracle, most, tolerance)
    mixture = expanded(found.mixture, is_kept)
    unserved = int(np.count_nonzero(~oracle.served))
    if not found.is_feasible:
        solution = _infeasible(problem, oracle, found, most, is_kept)
    else:
        choice = recover(oracle, found.mixture, weights, most)
        solution = _feasible(table, link, problem, weights, choice, found, is_kept)
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


def expanded(mixture: Mixture, is_kept: BoolArray) -> Mixture:
    """Return the mixture with a price of 0 on the limits that bind nowhere."""
    prices = np.zeros((len(mixture.prices), 1 + len(is_kept)))
    prices[:, np.append(True, is_kept)] = mixture.prices
    return replace(mixture, prices=prices)


def _scattered(values: FloatArray, is_kept: BoolArray, other: float) -> FloatArray:
    """Return one value per limit, `other` for the limits that bind nowhere."""
    full = np.full(len(is_kept), other)
    full[is_kept] = values
    return full


def _feasible(
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    weights: FloatArray,
    choice: Choice,
    found: DualOptimum,
    is_kept: BoolArray,
) -> AverageSolution:
    """Return the solution that `choice` is, scored anew by `evaluate`."""
    value, mean_costs = scored(table, link, problem, weights, choice)
    return AverageSolution(
        solver="average limits",
        status=Status.OPTIMAL,
        value=problem.sense * value,
        bound=problem.sense * found.bound,
        costs=mean_costs,
        prices=_scattered(found.prices, is_kept, 0.0),
        proof=0.0,
        rows=choice.rows,
        splits=choice.splits,
        mixture=found.mixture,
        reachable=np.full(len(is_kept), np.nan),
        num_iterations=found.num_iterations,
        runtime_s=0.0,
    )


def scored(
    table: ActionTable, link: LinkState, problem: Problem, weights: FloatArray, choice: Choice
) -> tuple[float, FloatArray]:
    """Return mean objective (to minimise) and mean costs (num_limits,) of `choice` by `evaluate`, over served states.

    Args:
        table: the rows.
        link: states, shape (num_states,).
        problem: objective and limits.
        weights: weight of each state [1], shape (num_states,).
        choice: a row per state, and the states that randomise.
    """
    mass = np.where(choice.rows == NOWHERE, 0.0, weights)
    mass /= np.sum(mass)
    kept = np.flatnonzero(mass > 0.0)
    kept = kept[~np.isin(kept, [split.state for split in choice.splits])]
    states = np.concatenate([kept, *(np.full(len(split.rows), split.state) for split in choice.splits)])
    rows = np.concatenate([choice.rows[kept], *(split.rows for split in choice.splits)])
    shares = np.concatenate([mass[kept], *(mass[split.state] * split.shares for split in choice.splits)])
    value, mean_costs = 0.0, np.zeros(len(problem.limits))
    for tile in tiles(len(states), _SCORED_AT_ONCE):
        result = evaluate(table, rows[tile], link.take(states[tile]), problem.metric)
        value += float(shares[tile] @ objective(result, problem))
        mean_costs += shares[tile] @ costs(result, problem)
    return value, mean_costs


def _infeasible(
    problem: Problem, oracle: Oracle, found: DualOptimum, most: FloatArray, is_kept: BoolArray
) -> AverageSolution:
    """Return the solution that says which limits are out of reach, with the multipliers that prove it."""
    reachable = _scattered(least_means(oracle, most), is_kept, np.nan)
    mean = found.totals[1:]
    return replace(
        _unserved(problem, len(oracle.served), 0.0),
        costs=_scattered(mean, is_kept, np.nan),
        prices=_scattered(found.prices, is_kept, 0.0),
        proof=found.bound,
        reachable=reachable,
        num_iterations=found.num_iterations,
        message=_out_of_reach(problem, reachable, _scattered(mean, is_kept, np.nan)),
    )


def _out_of_reach(problem: Problem, reachable: FloatArray, together: FloatArray) -> str:
    """Return in words which limits are out of reach and what could be kept in their place, alone or together."""
    sign = [problem.sense_of(limit.quantity) for limit in problem.limits]
    alone, jointly = [], []
    for number, (limit, most) in enumerate(zip(problem.limits, ceilings(problem), strict=True)):
        if reachable[number] > most:
            alone.append(
                f"{limit} is out of reach, its nearest reachable mean is {sign[number] * reachable[number]:.6g}"
            )
        if together[number] > most:
            jointly.append((str(limit), f"{sign[number] * together[number]:.6g}"))
    if alone:
        return f"no choice of rows keeps the limits on average: {'; or '.join(alone)}"
    asked, found = (" and ".join(words) for words in zip(*jointly, strict=True))
    return f"no choice of rows keeps {asked} on average; the nearest reachable means are {found}"


def _unserved(problem: Problem, num_states: int, start: float) -> AverageSolution:
    """Return the solution of a sample in which no state of positive weight has a row with finite costs."""
    num_limits = len(problem.limits)
    return AverageSolution(
        solver="average limits",
        status=Status.INFEASIBLE,
        value=np.nan,
        bound=np.nan,
        costs=np.full(num_limits, np.nan),
        prices=np.zeros(num_limits),
        proof=0.0,
        rows=np.full(num_states, NOWHERE, dtype=np.int64),
        splits=(),
        mixture=Mixture(prices=np.ones((1, 1 + num_limits)), shares=np.ones(1)),
        reachable=np.full(num_limits, np.nan),
        num_iterations=0,
        runtime_s=time.perf_counter() - start if start else 0.0,
        message="no state has a row with finite costs",
    )
