"""The best row of every channel state for given prices, and what those rows come to on average.

With prices (p_0, p_1, ..) on the objective and on the limited costs, row a is worth sum_q p_q cost_{a,q}(u_down, u_up),
which is affine in the two link times; `average_limits_groups` says how many states are settled at once.
A state that is dead in one direction or both may only use the rows that send nothing there; it keeps to its own group.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.solvers.average_limits_groups import PAIRS_AT_ONCE, BoxGroup, LineGroup, Lines, group_of
from megopt.solvers.brute_force import NOWHERE, RowCosts, tiles
from megopt.system.link import LinkState


class Oracle(Protocol):
    """Answers prices with the rows that are best under them."""

    @property
    def served(self) -> BoolArray:
        """Which states have a row with finite costs and take part in averages, shape (num_states,)."""
        ...

    def totals(self, prices: FloatArray) -> FloatArray:
        """Return the weighted mean of objective and limited costs under the best rows, shape (1 + num_limits,).

        Args:
            prices: price of the objective and of each limited cost, >= 0, shape (1 + num_limits,).
        """
        ...

    def rows(self, prices: FloatArray) -> IntArray:
        """Return the best row of each state, lowest row among equals, -1 if none; shape (num_states,)."""
        ...

    def costs(self, states: IntArray, rows: IntArray) -> FloatArray:
        """Return objective and limited costs of `rows` in `states`, shape (1 + num_limits, num_picked)."""
        ...


class AffineOracle:
    """The oracle of a table of rows over sampled link states: one group per kind of outage."""

    def __init__(self, costs: RowCosts, link: LinkState, weights: FloatArray) -> None:
        """Sort the states into groups.

        Args:
            costs: the rows.
            link: states, shape (num_states,).
            weights: weight of each state, >= 0 [1], shape (num_states,); averages are over the served ones.
        """
        lines, down, up = Lines.of(costs), link.downlink_s_per_bit, link.uplink_s_per_bit
        self._served = np.zeros(len(down), dtype=np.bool_)
        self._groups: list[tuple[IntArray, LineGroup | BoxGroup]] = []
        for is_down_dead, is_up_dead in ((False, False), (True, False), (False, True), (True, True)):
            states = np.flatnonzero((np.isinf(down) == is_down_dead) & (np.isinf(up) == is_up_dead))
            sends_none = _sends_none(lines, is_down_dead, is_up_dead)
            if len(states) and np.any(sends_none):
                self._served[states] = True
                zero = np.zeros(len(states))
                u, v = zero if is_down_dead else down[states], zero if is_up_dead else up[states]
                self._groups.append((states, group_of(lines.take(sends_none), u, v, weights[states])))
        self._costs, self._link = costs, link
        self._weight = float(np.sum(weights[self._served]))

    @property
    def served(self) -> BoolArray:
        """Which states have a row with finite costs, shape (num_states,)."""
        return self._served

    def totals(self, prices: FloatArray) -> FloatArray:
        """Return the weighted mean of objective and limited costs under the best rows, shape (1 + num_limits,)."""
        sums = [group.sums(prices) for _, group in self._groups]
        return (
            np.sum(sums, axis=0) / self._weight if self._weight > 0.0 else np.full(1 + len(self._costs.limits), np.nan)
        )

    def rows(self, prices: FloatArray) -> IntArray:
        """Return the best row of each state, -1 where no row is finite; shape (num_states,)."""
        rows = np.full(len(self._served), NOWHERE, dtype=np.int64)
        for states, group in self._groups:
            rows[states] = group.rows(prices)
        return rows

    def costs(self, states: IntArray, rows: IntArray) -> FloatArray:
        """Return objective and limited costs of `rows` in `states`, shape (1 + num_limits, num_picked)."""
        down, up = self._link.downlink_s_per_bit[states], self._link.uplink_s_per_bit[states]
        picked = self._costs.take(rows)
        return np.stack([cost.at(down, up) for cost in (picked.objective, *picked.limits)])


def _sends_none(lines: Lines, is_down_dead: bool, is_up_dead: bool) -> BoolArray:
    """Return which rows stay finite in an outage of these directions, shape (num_columns,)."""
    stays = np.ones(len(lines.rows), dtype=np.bool_)
    if is_down_dead:
        stays &= np.all(lines.down == 0.0, axis=0)
    if is_up_dead:
        stays &= np.all(lines.up == 0.0, axis=0)
    return stays


class DenseOracle:
    """The oracle of costs that are no affine function of the link: given in full, compared tile by tile."""

    def __init__(self, costs: FloatArray, weights: FloatArray) -> None:
        """Keep the costs; nothing is copied.

        Args:
            costs: objective and limited costs, shape (1 + num_limits, num_states, num_rows); a row with a cost that is
                not finite cannot be chosen in that state.
            weights: weight of each state [1], shape (num_states,).

        Raises:
            ProblemError: if the shapes do not fit together or there is no row.
        """
        if costs.ndim != 3 or costs.shape[1] != len(weights) or not costs.shape[2]:
            message = (
                f"costs of shape {costs.shape} with {len(weights)} weights; expected (1 + num_limits, num_states, "
                "num_rows) with one weight per state and at least one row; stack the objective before the limits"
            )
            raise ProblemError(message)
        self._costs = costs
        chunk = max(1, PAIRS_AT_ONCE // costs.shape[2])
        self._tiles = list(tiles(len(weights), chunk))
        self._served = np.concatenate(
            [np.zeros(0, dtype=np.bool_), *(self._is_finite(tile).any(axis=1) for tile in self._tiles)]
        )
        self._weights = np.where(self._served, weights, 0.0)

    def _is_finite(self, tile: slice) -> BoolArray:
        return np.asarray(np.all(np.isfinite(self._costs[:, tile]), axis=0))

    @property
    def served(self) -> BoolArray:
        """Which states have a row with finite costs, shape (num_states,)."""
        return self._served

    def totals(self, prices: FloatArray) -> FloatArray:
        """Return the weighted mean of objective and limited costs under the best rows, shape (1 + num_limits,)."""
        rows, states = self.rows(prices), np.flatnonzero(self._weights > 0.0)
        picked = self._costs[:, states, rows[states]]
        return np.asarray(picked @ self._weights[states] / np.sum(self._weights[states]))

    def rows(self, prices: FloatArray) -> IntArray:
        """Return the best row of each state, lowest row among equals, -1 if none; shape (num_states,)."""
        rows = np.full(len(self._weights), NOWHERE, dtype=np.int64)
        for tile in self._tiles:
            is_finite = self._is_finite(tile)
            worth = np.zeros(is_finite.shape)
            for price, cost in zip(prices, self._costs, strict=True):
                worth += price * np.where(is_finite, cost[tile], 0.0)
            best = np.argmin(np.where(is_finite, worth, np.inf), axis=1)
            rows[tile] = np.where(is_finite.any(axis=1), best, NOWHERE)
        return rows

    def costs(self, states: IntArray, rows: IntArray) -> FloatArray:
        """Return objective and limited costs of `rows` in `states`, shape (1 + num_limits, num_picked)."""
        return np.asarray(self._costs[:, states, rows])
