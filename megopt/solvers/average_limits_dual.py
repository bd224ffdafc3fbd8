"""The Lagrangian dual of a long-run problem, solved by cutting planes, with a proof for either outcome.

With F(pi) the mean objective and C_i(pi) the mean costs of a way pi to choose rows, the problem over all mixtures is

    min F   subject to   C_i <= L_i,        dual  g(lambda) = min_pi [F + sum_i lambda_i (C_i - L_i)],  lambda >= 0.

g is concave, and at any lambda an oracle names the minimising pi. Each such pi is a cut on the dual and a column of the
primal: a small linear program mixes the columns found so far, its multipliers are the next lambda, and the loop ends
when the mixture costs no more than g(lambda) promises. g(lambda) is a bound whatever the linear program did.

A first phase does the same for the largest relative excess over a limit, min max_i (C_i - L_i) / scale_i. Where that
stays above 0, its multipliers mu prove it: sum_i mu_i (C_i - L_i) > 0 for every pi (Farkas).
Source: Dantzig and Wolfe, Operations Research 1960; Kelley, J. SIAM 1960.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.average_limits_oracle import Oracle

FEASIBILITY_TOLERANCE = 1e-9
"""Excess over a limit, relative to the limit, below which it counts as kept."""
_NEGLIGIBLE = 1e-6
"""Size of a limit beside the costs up to which excesses are relative to the costs, so that programs are well scaled."""
_NEARNESS = 1e-3
"""Weight of a column's own prices beside the best ones in a mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """At most 1 + num_limits prices and how often each is followed; together they keep the limits on average.

    Attributes:
        prices: price of the objective and of each limited cost, >= 0, shape (num_prices, 1 + num_limits).
        shares: probability of each, > 0, sums to 1, shape (num_prices,).
    """

    prices: FloatArray
    shares: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DualOptimum:
    """What the cutting planes came to, smaller is better.

    Attributes:
        is_feasible: whether some mixture keeps all limits.
        value: mean objective of the best mixture, or its largest relative excess over a limit if infeasible.
        bound: proved lower bound on `value`.
        prices: multipliers behind `bound`, shape (num_limits,): lambda if feasible, else mu, >= 0.
        mixture: the mixture that attains `value`.
        totals: its mean objective and costs, shape (1 + num_limits,).
        num_iterations: prices that were tried.
    """

    is_feasible: bool
    value: float
    bound: float
    prices: FloatArray
    mixture: Mixture
    totals: FloatArray
    num_iterations: int


def minimise(oracle: Oracle, ceilings: FloatArray, tolerance: float = 1e-9, max_iterations: int = 2000) -> DualOptimum:
    """Return optimum, bound and mixture of a long-run problem, or the proof that its limits cannot be kept.

    Args:
        oracle: the rows over the states; it has to serve at least one state of positive weight.
        ceilings: finite limits, shape (num_limits,).
        tolerance: relative distance of value and bound at which to stop.
        max_iterations: prices tried at most; beyond, `value` and `bound` are what was reached.
    """
    planes = _Planes(oracle, np.asarray(ceilings, dtype=np.float64))
    if not len(ceilings):
        return planes.found(np.ones(1), planes.worth(0), np.zeros(0), is_feasible=True)
    excess, shares, mu, proof = planes.close(0.0, tolerance, max_iterations)
    if excess > FEASIBILITY_TOLERANCE:
        return planes.found(shares, proof, mu / planes.scales, is_feasible=False)
    _, shares, prices, bound = planes.close(1.0, tolerance, max_iterations, excess)
    return planes.found(shares, bound, prices / planes.scales, is_feasible=True)


def excess_scales(ceilings: FloatArray, largest: FloatArray) -> FloatArray:
    """Return what an excess over each limit is relative to, > 0: the limit, or where that is next to 0 the costs.

    Args:
        ceilings: finite limits, shape (num_limits,).
        largest: largest size of each cost that occurs, shape (num_limits,).
    """
    size = np.abs(ceilings)
    scales = np.where(size > _NEGLIGIBLE * largest, size, largest)
    return np.where(scales == 0.0, 1.0, scales)


class _Planes:
    """The columns found so far: prices, and mean objective and relative excesses of the rows that are best under them.

    Multipliers are per relative excess in here, which keeps the linear programs well scaled.
    """

    def __init__(self, oracle: Oracle, ceilings: FloatArray) -> None:
        self._oracle, self._ceilings = oracle, ceilings
        unit = np.eye(1 + len(ceilings))
        first = [oracle.totals(prices) for prices in unit]
        largest = np.max(np.abs(first), axis=0)
        self.scales = excess_scales(self._ceilings, largest[1:])
        self._unit = float(largest[0]) or 1.0
        self._prices, self._totals = list(unit), first

    def worth(self, column: int) -> float:
        """Return the mean objective of a column."""
        return float(self._totals[column][0])

    def _excesses(self) -> FloatArray:
        """Return the relative excesses over the limits, shape (num_columns, num_limits)."""
        return np.asarray((np.stack(self._totals)[:, 1:] - self._ceilings) / self.scales)

    def close(
        self, weight: float, tolerance: float, max_iterations: int, excess: float = 0.0
    ) -> tuple[float, FloatArray, FloatArray, float]:
        """Add columns until value and bound meet; return value, shares, multipliers of the best bound, and that bound.

        Args:
            weight: 1 to minimise the objective within the limits, 0 to minimise the largest relative excess.
            tolerance: relative distance of value and bound at which to stop.
            max_iterations: columns at most.
            excess: relative excess over the limits that counts as none: rounding that the first phase left.
        """
        best_bound, best = -np.inf, np.zeros(len(self.scales))
        while True:
            value, shares, multipliers = self._mixed(weight, excess)
            if weight == 0.0 and value <= FEASIBILITY_TOLERANCE / 2.0:
                return value, shares, multipliers, best_bound
            bound = self._cut(weight, multipliers)
            if bound > best_bound:
                best_bound, best = bound, multipliers
            slack = tolerance * abs(value) + 1e-14 * (self._unit if weight else 1.0)
            if value - best_bound <= slack or len(self._totals) >= max_iterations or self._is_repeated():
                return value, shares, best, best_bound

    def _cut(self, weight: float, multipliers: FloatArray) -> float:
        """Add the column that is best under the multipliers and return the bound that it proves."""
        prices = np.concatenate([[weight], multipliers / self.scales])
        self._prices.append(prices)
        self._totals.append(self._oracle.totals(prices))
        return float(weight * self._totals[-1][0] + multipliers @ self._excesses()[-1])

    def _is_repeated(self) -> bool:
        """Whether the last column was there before, so that it cannot change the mixture."""
        return any(np.array_equal(self._totals[-1], other) for other in self._totals[:-1])

    def _mixed(self, weight: float, excess: float) -> tuple[float, FloatArray, FloatArray]:
        """Return value, shares and multipliers of the best mixture of the columns found so far.

        The unknowns are the shares and, if the objective has no weight, the largest excess, which is at least 0.
        """
        excesses, num_columns = self._excesses(), len(self._totals)
        objective, upper, total = np.stack(self._totals)[:, 0] / self._unit, excesses.T, np.ones((1, num_columns))
        if weight == 0.0:
            objective = np.append(np.zeros(num_columns), 1.0)
            upper = np.hstack([upper, np.full((len(self.scales), 1), -1.0)])
            total = np.append(total, [[0.0]], axis=1)
        program = linear_program(objective, upper, np.full(len(self.scales), excess), total, np.ones(1))
        assert program.is_feasible
        unit = self._unit if weight else 1.0
        shares = program.x[:num_columns] / np.sum(program.x[:num_columns])
        return program.value * unit, shares, program.prices * unit

    def found(self, shares: FloatArray, bound: float, prices: FloatArray, *, is_feasible: bool) -> DualOptimum:
        """Return the optimum that `shares` of the first columns are."""
        used = np.flatnonzero(shares > 0.0)
        totals = shares[used] @ np.stack(self._totals)[used]
        best = np.concatenate([[float(is_feasible)], prices])
        excess = np.max((totals[1:] - self._ceilings) / self.scales, initial=-np.inf)
        return DualOptimum(
            is_feasible=is_feasible,
            value=float(totals[0] if is_feasible else excess),
            bound=bound,
            prices=prices,
            mixture=Mixture(prices=np.stack([self._nearer(column, best) for column in used]), shares=shares[used]),
            totals=totals,
            num_iterations=len(self._totals),
        )

    def _nearer(self, column: np.intp, best: FloatArray) -> FloatArray:
        """Return prices next to the `best` ones, shape (1 + num_limits,), that lead to the same rows as a column's own.

        Rows that are best under both are best under any blend of the two. Next to the best prices, the mixed prices
        differ in the ties alone, also in states outside the sample.
        """
        own, sizes = self._prices[column], np.append(self._unit, self.scales)
        blend = best + _NEARNESS * (sizes @ best) / (sizes @ own) * own
        slack = 1e-12 * np.max(np.abs(self._totals), axis=0)
        is_same = np.all(np.abs(self._oracle.totals(blend) - self._totals[column]) <= slack)
        return blend if is_same else own
