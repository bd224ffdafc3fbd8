"""The long-run optimum at every value of one limit, with warm starts and a bound that holds between the values too.

What rows cost under given prices does not depend on the limits. So every price that was tried for one limit is a cut
on the dual, and a column of the primal, of all others: from the tightest limit that can be kept on, each solve begins
with the prices and columns of its neighbours, and mostly a few more close the gap.

The curve itself, and what it proves between the limits, is in `average_limits_curve`.
Source: S. Boyd and L. Vandenberghe, Convex Optimization, section 5.6 (perturbation).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import AverageSolution, limited_costs, solve, state_weights
from megopt.solvers.average_limits_curve import LongRunCurve
from megopt.solvers.average_limits_dual import Mixture, excess_scales
from megopt.solvers.average_limits_groups import lower_hull
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.average_limits_oracle import AffineOracle, Oracle
from megopt.solvers.average_limits_recovery import recover
from megopt.solvers.average_limits_solution import expanded, scored
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

_LARGE = 1e30
"""What stands for a ceiling of -inf in a linear program."""


def sweep(
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    quantity: str,
    limits: FloatArray,
    weights: FloatArray | None = None,
    tolerance: float = 1e-9,
) -> LongRunCurve:
    """Return the long-run optimum under every limit on the mean of `quantity`, each with its certified bound.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective, and limits on means besides the swept one; a limit on `quantity` is replaced.
        quantity: the limited quantity.
        limits: its values, finite, in any order [unit of the quantity], shape (num_limits,).
        weights: weight of each state [1], shape (num_states,); equal if None.
        tolerance: relative gap at which to stop.

    Raises:
        ProblemError: as `average_limits.solve`, and for limits that are not finite.
    """
    start = time.perf_counter()
    if not np.isfinite(limits).all():
        message = f"sweep of {quantity}: limits {np.asarray(limits).tolist()}; expected finite numbers"
        raise ProblemError(message)
    problems = [problem.with_limit(quantity, float(bound)) for bound in limits]
    order = np.argsort([ceilings(swept)[-1] for swept in problems], kind="stable")
    points = list(_walk(table, link, [problems[number] for number in order], weights, tolerance))
    return LongRunCurve(
        quantity=quantity,
        limits=np.asarray(limits, dtype=np.float64)[order],
        ceilings=np.array([ceilings(problems[number])[-1] for number in order]),
        statuses=tuple(point.status for point in points),
        means=np.array([point.value for point in points]),
        bounds=np.array([point.bound for point in points]),
        costs=np.array([point.costs for point in points]),
        prices=np.array([point.price for point in points]),
        mixtures=tuple(point.mixture for point in points),
        num_prices=np.array([point.num_prices for point in points], dtype=np.int64),
        sense=problem.sense,
        runtime_s=time.perf_counter() - start,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """The answer at one limit; fields as in `LongRunCurve`."""

    status: Status
    value: float
    bound: float
    costs: FloatArray
    price: float
    mixture: Mixture
    num_prices: int

    @classmethod
    def of(cls, solution: AverageSolution) -> _Point:
        """Return the point of an answer."""
        is_solved = solution.status != Status.INFEASIBLE
        return cls(
            status=solution.status,
            value=solution.value,
            bound=solution.bound,
            costs=solution.costs,
            price=float(solution.prices[-1]) if is_solved else float("nan"),
            mixture=solution.mixture,
            num_prices=solution.num_iterations,
        )


def _walk(
    table: ActionTable, link: LinkState, problems: list[Problem], weights: FloatArray | None, tolerance: float
) -> Iterator[_Point]:
    """Yield the answer of each problem, tightest first: cold until one is feasible, then from the neighbours'."""
    pool: _Pool | None = None
    for problem in problems:
        point = None if pool is None else pool.point(problem, tolerance)
        if point is None:
            solution = solve(table, link, problem, weights, tolerance)
            if pool is None and solution.status != Status.INFEASIBLE:
                pool = _Pool(table, link, problem, weights, solution)
            point = _Point.of(solution)
        yield point


class _Pool:
    """All prices tried so far, and what the rows that are best under them cost on average."""

    def __init__(
        self,
        table: ActionTable,
        link: LinkState,
        problem: Problem,
        weights: FloatArray | None,
        solution: AverageSolution,
    ) -> None:
        """Begin with the prices of a feasible solution of `problem`; its columns are feasible under looser limits."""
        self._table, self._link, self._seed = table, link, solution
        self._weights = state_weights(weights, len(link.snr))
        row_costs, self._is_kept = limited_costs(table, link, problem)
        self._oracle: Oracle = AffineOracle(row_costs, link, self._weights)
        columns = np.append(True, self._is_kept)
        best = np.append(1.0, solution.prices)[columns]
        self._prices: list[FloatArray] = []
        self._totals: list[FloatArray] = []
        self._seen: set[bytes] = set()
        for prices in (*np.eye(int(np.count_nonzero(columns))), *solution.mixture.prices[:, columns], best):
            self._add(prices, self._oracle.totals(prices))

    def point(self, problem: Problem, tolerance: float) -> _Point | None:
        """Return the answer under the limits of `problem`; None where rounding keeps the columns from serving it."""
        most = np.maximum(ceilings(problem)[self._is_kept], -_LARGE)
        best_bound, best, num_prices = -np.inf, np.zeros(len(most)), 0
        unit = max(float(np.max(np.abs(np.stack(self._totals)[:, 0]))), np.finfo(np.float64).tiny)
        while True:
            mixed = self._mixed(most, unit)
            if mixed is None:
                return None
            value, shares, multipliers = mixed
            bound, is_new = self._cut(multipliers, most)
            num_prices += 1
            if bound > best_bound:
                best_bound, best = bound, multipliers
            if value - best_bound <= tolerance * abs(value) + 1e-14 * unit or not is_new:
                return self._reported(problem, most, shares, best_bound, best, num_prices)

    def _mixed(self, most: FloatArray, unit: float) -> tuple[float, FloatArray, FloatArray] | None:
        """Return value, shares and multipliers of the best mixture of the columns; None where none is feasible."""
        totals = np.stack(self._totals)
        if len(most) == 1:
            return _mixed_of_two(totals[:, 0], totals[:, 1], float(most[0]))
        scales = excess_scales(most, np.max(np.abs(totals[:, 1:]), axis=0))
        ones = np.ones((1, len(totals)))
        program = linear_program(totals[:, 0] / unit, (totals[:, 1:] / scales).T, most / scales, ones, np.ones(1))
        if not program.is_feasible:
            return None
        return program.value * unit, program.x / np.sum(program.x), program.prices * unit / scales

    def _cut(self, multipliers: FloatArray, most: FloatArray) -> tuple[float, bool]:
        """Add the column that is best under the multipliers; return the bound it proves, and whether it is new."""
        prices = np.append(1.0, multipliers)
        totals = self._oracle.totals(prices)
        is_new = totals.tobytes() not in self._seen
        if is_new:
            self._add(prices, totals)
        return float(totals[0] + multipliers @ (totals[1:] - most)), is_new

    def _add(self, prices: FloatArray, totals: FloatArray) -> None:
        self._prices.append(prices)
        self._totals.append(totals)
        self._seen.add(totals.tobytes())

    def _reported(
        self, problem: Problem, most: FloatArray, shares: FloatArray, bound: float, prices: FloatArray, num_prices: int
    ) -> _Point:
        """Return the answer that `shares` of the columns are, scored anew by `evaluate`."""
        used = np.flatnonzero(shares > 0.0)
        mixture = Mixture(prices=np.stack([self._prices[column] for column in used]), shares=shares[used])
        choice = recover(self._oracle, mixture, self._weights, most)
        value, mean_costs = scored(self._table, self._link, problem, self._weights, choice)
        return _Point(
            status=self._seed.status,
            value=problem.sense * value,
            bound=problem.sense * bound,
            costs=mean_costs,
            price=float(prices[-1]),
            mixture=expanded(mixture, self._is_kept),
            num_prices=num_prices,
        )


def _mixed_of_two(values: FloatArray, costs: FloatArray, most: float) -> tuple[float, FloatArray, FloatArray] | None:
    """Return value, shares and multiplier of the best mixture of columns under one limit, without a linear program.

    Over the multiplier, the worth of a column is a line of slope `costs`; on the lower envelope, the dual is best where
    the slope falls below the limit, and the two columns that meet there are the mixture. None where none is feasible.
    """
    order = np.lexsort((costs, values))
    before = np.concatenate([[np.inf], np.minimum.accumulate(costs[order])[:-1]])
    order = order[costs[order] < before]
    hull, begins = lower_hull(values[order], costs[order])
    columns, shares = order[hull], np.zeros(len(values))
    kept = np.flatnonzero(costs[columns] <= most)
    if not len(kept):
        return None
    low, high = columns[kept[0]], columns[max(kept[0] - 1, 0)]
    shares[high] = 0.0 if low == high else (most - costs[low]) / (costs[high] - costs[low])
    shares[low] = 1.0 - shares[high]
    multiplier = begins[kept[0] - 1] if kept[0] else 0.0
    return float(shares @ values), shares, np.array([multiplier])
