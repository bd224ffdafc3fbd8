"""What an answer to long-run limits says: value, certificate, prices, and in words what is out of reach.

A choice of rows is scored anew by `problem.evaluate`; where no choice keeps the limits, the nearest means that can be
reached are named, alone and together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.problem import Problem, ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits_dual import DualOptimum, Mixture
from megopt.solvers.average_limits_oracle import Oracle
from megopt.solvers.average_limits_reach import least_means
from megopt.solvers.average_limits_recovery import Choice, Split
from megopt.solvers.brute_force import NOWHERE, tiles
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

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


def feasible(
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


def infeasible(
    problem: Problem, oracle: Oracle, found: DualOptimum, most: FloatArray, is_kept: BoolArray
) -> AverageSolution:
    """Return the solution that says which limits are out of reach, with the multipliers that prove it."""
    reachable = _scattered(least_means(oracle, most), is_kept, np.nan)
    mean = found.totals[1:]
    return replace(
        none_served(problem, len(oracle.served), 0.0),
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


def none_served(problem: Problem, num_states: int, start: float) -> AverageSolution:
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
