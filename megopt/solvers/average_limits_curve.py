"""The long-run optimum as a function of one limit: known at the values that were solved for, enclosed between them.

With v(L) the optimum as minimised, g_i the dual bound proved at L_i and lambda_i >= 0 the price of the limit there,
weak duality gives v(L) >= g_i - lambda_i (L - L_i) for every L, and mixing two answers gives v below the chord between
them. The curve is known everywhere to within the two.
Source: S. Boyd and L. Vandenberghe, Convex Optimization, section 5.6 (perturbation); G. Rote, Computing 48 (1992),
p. 337 (sandwich of chords and supports).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.solvers.average_limits_dual import Mixture
from megopt.solvers.solution import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRunCurve:
    """What long-run limits allow as one of them moves; all arrays begin with (num_limits,).

    Attributes:
        quantity: the limited quantity.
        limits: its values, ascending in what they allow [unit of the quantity].
        ceilings: the same as ceilings on the cost, as in `problem.ceilings`.
        statuses: how each solve ended.
        means: mean objective by `problem.evaluate` [unit of the objective]; NaN if infeasible.
        bounds: certified bound on it (below for min, above for max); NaN if infeasible.
        costs: mean limited costs as in `problem.costs`, the swept one last, shape (num_limits, num_costs).
        prices: what a unit of the swept limit is worth in units of the objective, >= 0; NaN if infeasible.
        mixtures: each answer as prices to follow, for states outside the sample; one per limit.
        num_prices: prices that were tried at each limit.
        sense: 1 if the objective is minimised as reported, -1 if it is maximised.
        runtime_s: wall time of the sweep [s].
    """

    quantity: str
    limits: FloatArray
    ceilings: FloatArray
    statuses: tuple[Status, ...]
    means: FloatArray
    bounds: FloatArray
    costs: FloatArray
    prices: FloatArray
    mixtures: tuple[Mixture, ...]
    num_prices: IntArray
    sense: int
    runtime_s: float

    @property
    def is_feasible(self) -> BoolArray:
        """Which limits can be kept on average, shape (num_limits,)."""
        return np.isfinite(self.means)

    @property
    def gap(self) -> float:
        """Largest relative distance |value - bound| / max(|bound|, 1e-12) at the limits; NaN where none is feasible."""
        known = self.is_feasible
        gaps = np.abs(self.means - self.bounds)[known] / np.maximum(np.abs(self.bounds[known]), 1e-12)
        return float(np.max(gaps)) if np.any(known) else float("nan")

    def bound_at(self, most: FloatArray) -> FloatArray:
        """Return the certified bound on the optimum under ceilings `most` on the swept cost, shape (num_asked,).

        It holds for every ceiling, whether it was solved for or not; -inf (inf if maximised) where nothing is proved.
        """
        known = self.is_feasible
        supports = (self.sense * self.bounds + self.prices * self.ceilings)[known]
        lines = supports[:, None] - self.prices[known, None] * np.asarray(most, dtype=np.float64)
        return np.asarray(self.sense * np.max(lines, axis=0, initial=-np.inf))

    def reached_at(self, most: FloatArray) -> FloatArray:
        """Return what mixing the two neighbouring answers reaches under ceilings `most`, shape (num_asked,).

        NaN below the least mean that was reached; beyond the largest it is that one's value.
        """
        known = self.is_feasible
        if not np.any(known):
            return np.full(np.shape(most), np.nan)
        spent, first = np.unique(self.costs[known, -1], return_index=True)
        spent[0] = min(spent[0], self.ceilings[known][0])
        return np.interp(most, spent, self.means[known][first], left=np.nan)

    @property
    def gap_between(self) -> float:
        """Largest distance of `reached_at` and `bound_at` over the whole curve [unit of the objective].

        Chord and supports are straight between neighbours, so the distance is largest where two supports meet.
        """
        known = self.is_feasible
        most, price = self.ceilings[known], self.prices[known]
        level = (self.sense * self.bounds)[known] + price * most
        fall = price[:-1] - price[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            meeting = np.where(fall > 0.0, (level[:-1] - level[1:]) / fall, most[:-1])
        asked = np.concatenate([most, np.clip(meeting, most[:-1], most[1:])])
        return float(np.max(np.abs(self.reached_at(asked) - self.bound_at(asked)), initial=0.0))
