"""The two prices of a cell: cutting planes on the dual of `cell_model`, with the best row of every user at each try.

g(lambda, mu) = sum_k min_a (...) - lambda B - mu P is concave, and the demands for band and power at a try are slopes:

    g <= f + lambda (sum w - B) + mu (sum p - P)        with f, w, p of the rows and paces chosen there.

The least upper estimate by all such planes so far is maximised within a box around the best prices, a factor
e^`_REACH` to either side, until it says that nothing is left to gain (Kelley 1960; the box is that of Marsten, Hogan
and Blankenship 1975). Every try is a certified bound, however the search ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers.allocation_device import efficiency
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.cell_pairs import Pairs

TOLERANCE = 1e-7
"""Relative distance of dual and estimate at which the search ends."""
_REACH = 1.5
_MOST_TRIES = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """What one pair of prices says.

    Attributes:
        prices: lambda B and mu P [unit of the objective], shape (2,).
        bound: g there, a lower bound on the objective to minimise.
        fixed: f, the objective of rows and paces chosen there, which need not fit.
        excess: sum w/B - 1 and sum p/P - 1, shape (2,).
        rows: the rows (kept) chosen there, shape (K,).
        unit_price: price of a unit of pace of each user, shape (K,).
    """

    prices: FloatArray
    bound: float
    fixed: float
    excess: FloatArray
    rows: IntArray
    unit_price: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Dual:
    """Where the search ended.

    Attributes:
        best: the try with the largest bound.
        tries: all of them.
        is_slack: whether the best rows of all fit at no price, so that the bound is attained.
    """

    best: Try
    tries: tuple[Try, ...]
    is_slack: bool


def unit_price(prices: FloatArray, gain: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the price of a unit of pace and the nats per symbol, each (K,), at lambda B > 0 and mu P > 0, (2,)."""
    nats = efficiency(gain * (prices[0] / prices[1]))
    return np.asarray(prices[1] * np.exp(nats) / gain), nats


def attempt(pairs: Pairs, prices: FloatArray) -> Try:
    """Return what `prices`, lambda B and mu P of shape (2,), say; all users, all rows."""
    price, nats = unit_price(prices, pairs.gain)
    rows, values = pairs.best(price)
    chosen = pairs.chosen(rows)
    pace = np.maximum(np.sqrt(chosen.weighed / price), chosen.floor)
    bandwidth = pace / nats
    power = bandwidth * np.expm1(nats) / pairs.gain
    return Try(
        prices=prices,
        bound=float(np.sum(values) - np.sum(prices)),
        fixed=float(np.sum(chosen.fixed + chosen.weighed / pace)),
        excess=np.array([np.sum(bandwidth) - 1.0, np.sum(power) - 1.0]),
        rows=rows,
        unit_price=price,
    )


def search(pairs: Pairs, start: FloatArray) -> Dual:
    """Return the best prices found from `start`, lambda B and mu P, each above 0, shape (2,)."""
    tries = [attempt(pairs, start)]
    best = tries[0]
    for _ in range(_MOST_TRIES):
        prices, estimate = _highest(tries, best)
        if estimate - best.bound <= TOLERANCE * max(abs(best.bound), 1e-9 * float(np.sum(best.prices))):
            break
        tries.append(attempt(pairs, prices))
        if tries[-1].bound > best.bound:
            best = tries[-1]
    return Dual(best=best, tries=tuple(tries), is_slack=False)


def _highest(tries: list[Try], best: Try) -> tuple[FloatArray, float]:
    """Return where in the box around the best prices the planes are highest, and how high.

    In the linear program prices run from 0 to 1 between the ends of the box, and the estimate is counted from the best
    bound on, in units of what the budgets cost there.
    """
    low, high = best.prices * np.exp(-_REACH), best.prices * np.exp(_REACH)
    unit = float(np.sum(best.prices))
    slopes = np.stack([one.excess for one in tries])
    heights = np.array([one.fixed for one in tries]) + slopes @ low - best.bound
    planes = np.column_stack([-slopes * (high - low) / unit, np.ones(len(tries))])
    box = np.column_stack([np.eye(2), np.zeros(2)])
    program = linear_program(
        np.array([0.0, 0.0, -1.0]),
        np.concatenate([planes, box]),
        np.concatenate([heights / unit, np.ones(2)]),
        np.zeros((0, 3)),
        np.zeros(0),
    )
    return low + (high - low) * program.x[:2], best.bound - program.value * unit
