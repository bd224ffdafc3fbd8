"""How far each long-run limit would have to move, the others kept, for some choice of rows to keep them all."""

from __future__ import annotations

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.solvers.average_limits_dual import minimise
from megopt.solvers.average_limits_oracle import Oracle


def least_means(oracle: Oracle, ceilings: FloatArray) -> FloatArray:
    """Return the least mean of each limited cost with the other limits kept, shape (num_limits,).

    Args:
        oracle: the rows over the states.
        ceilings: finite limits, shape (num_limits,).

    Returns:
        Least means; NaN where the other limits alone cannot be kept.
    """
    least = np.full(len(ceilings), np.nan)
    for number in range(len(ceilings)):
        others = np.delete(np.arange(len(ceilings)), number)
        found = minimise(_Reordered(oracle, np.append(number, others) + 1), ceilings[others])
        if found.is_feasible:
            least[number] = found.value
    return least


class _Reordered:
    """An oracle whose objective is one of the limited costs of another."""

    def __init__(self, oracle: Oracle, quantities: IntArray) -> None:
        """Take the given `quantities` of `oracle`, the new objective first; its own objective is 0."""
        self._oracle, self._quantities = oracle, quantities

    @property
    def served(self) -> BoolArray:
        return self._oracle.served

    def _prices(self, prices: FloatArray) -> FloatArray:
        full = np.zeros(1 + len(self._quantities))
        full[self._quantities] = prices
        return full

    def totals(self, prices: FloatArray) -> FloatArray:
        return self._oracle.totals(self._prices(prices))[self._quantities]

    def rows(self, prices: FloatArray) -> IntArray:
        return self._oracle.rows(self._prices(prices))

    def costs(self, states: IntArray, rows: IntArray) -> FloatArray:
        return self._oracle.costs(states, rows)[self._quantities]
