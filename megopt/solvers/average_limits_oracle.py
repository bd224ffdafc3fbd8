"""The best row of every channel state for given prices, and what those rows come to on average.

With prices (p_0, p_1, ..) on the objective and on the limited costs, row a is worth sum_q p_q cost_{a,q}(u_down, u_up),
which is affine in the two link times. Where the uplink time is a constant multiple of the downlink time, or no row
sends uplink, the best row over all states is the lower envelope of one line per row: with the states sorted once, and
the sums of their weights and times, an average costs O(rows log rows) however many states there are. Where the two
times vary apart, boxes of near states rule out all but a few rows, and those are compared state by state.
A state that is dead in one direction or both may only use the rows that send nothing there; it keeps to its own group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.solvers.brute_force import NOWHERE, RowCosts, tiles
from megopt.system.link import LinkState

_PAIRS_AT_ONCE = 1 << 20
"""States x rows, or boxes x rows, whose worth is held at once."""
_STATES_PER_BOX = 256
_SAME_RATIO = 1e-12
"""Relative spread of u_up / u_down up to which it counts as constant."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Objective and limited costs of rows, smaller is better, as `constant + down u_down + up u_up`.

    Attributes:
        rows: row of the table behind each column, shape (num_columns,).
        constant: shape (1 + num_limits, num_columns); the objective comes first.
        down: slopes over the downlink time [.. bit/s], same shape.
        up: slopes over the uplink time [.. bit/s], same shape.
    """

    rows: IntArray
    constant: FloatArray
    down: FloatArray
    up: FloatArray

    @classmethod
    def of(cls, costs: RowCosts) -> Lines:
        """Return the rows whose objective and costs are all finite while the link carries data."""
        parts = (costs.objective, *costs.limits)
        constant, down, up = (
            np.stack([getattr(part, name) for part in parts]) for name in ("constant", "per_downlink", "per_uplink")
        )
        rows = np.flatnonzero(np.all(np.isfinite(constant) & np.isfinite(down) & np.isfinite(up), axis=0))
        return cls(rows=rows, constant=constant[:, rows], down=down[:, rows], up=up[:, rows])

    def take(self, columns: IntArray | BoolArray) -> Lines:
        """Return the given columns."""
        return Lines(
            rows=self.rows[columns],
            constant=self.constant[:, columns],
            down=self.down[:, columns],
            up=self.up[:, columns],
        )

    def priced(self, prices: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return constant and slopes of the worth of each row under `prices`, shape (num_columns,) each."""
        return prices @ self.constant, prices @ self.down, prices @ self.up


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
        self._groups: list[tuple[IntArray, _LineGroup | _BoxGroup]] = []
        for is_down_dead, is_up_dead in ((False, False), (True, False), (False, True), (True, True)):
            states = np.flatnonzero((np.isinf(down) == is_down_dead) & (np.isinf(up) == is_up_dead))
            sends_none = _sends_none(lines, is_down_dead, is_up_dead)
            if len(states) and np.any(sends_none):
                self._served[states] = True
                zero = np.zeros(len(states))
                u, v = zero if is_down_dead else down[states], zero if is_up_dead else up[states]
                self._groups.append((states, _group(lines.take(sends_none), u, v, weights[states])))
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


def _group(lines: Lines, u: FloatArray, v: FloatArray, weights: FloatArray) -> _LineGroup | _BoxGroup:
    """Return a group of states with one link time where that is enough, else with two."""
    if not np.any(lines.up) or not np.any(v):
        return _LineGroup(lines, lines.down, u, weights)
    if not np.any(lines.down) or not np.any(u):
        return _LineGroup(lines, lines.up, v, weights)
    ratio = float(np.sum(v) / np.sum(u))
    if np.allclose(v, ratio * u, rtol=_SAME_RATIO, atol=0.0):
        return _LineGroup(lines, lines.down + ratio * lines.up, u, weights)
    return _BoxGroup(lines, u, v, weights)


class _LineGroup:
    """States that differ in one link time x; `slope` is the growth of each quantity with x."""

    def __init__(self, lines: Lines, slope: FloatArray, x: FloatArray, weights: FloatArray) -> None:
        self._lines, self._slope, self._x = lines, slope, x
        order = np.argsort(x)
        self._sorted = x[order]
        self._mass = np.concatenate([[0.0], np.cumsum(weights[order])])
        self._moment = np.concatenate([[0.0], np.cumsum(weights[order] * self._sorted)])

    def sums(self, prices: FloatArray) -> FloatArray:
        columns, edges = self._envelope(prices)
        ends = np.concatenate([[0], np.searchsorted(self._sorted, edges), [len(self._sorted)]])
        mass, moment = np.diff(self._mass[ends]), np.diff(self._moment[ends])
        return np.asarray(self._lines.constant[:, columns] @ mass + self._slope[:, columns] @ moment)

    def rows(self, prices: FloatArray) -> IntArray:
        columns, edges = self._envelope(prices)
        return np.asarray(self._lines.rows[columns[np.searchsorted(edges, self._x, side="right")]])

    def _envelope(self, prices: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the columns of the lower envelope from the least x on, and where one hands over to the next."""
        start = self._sorted[0]
        slope = prices @ self._slope
        value = prices @ self._lines.constant + slope * start
        order = np.lexsort((self._lines.rows, slope, value))
        before = np.concatenate([[np.inf], np.minimum.accumulate(slope[order])[:-1]])
        order = order[slope[order] < before]
        hull, gains = lower_hull(value[order], slope[order])
        return order[hull], start + gains


def lower_hull(value: FloatArray, slope: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return the lower envelope over x >= 0 of the lines `value + slope x`, values ascending, slopes descending.

    Args:
        value: at x = 0, ascending, shape (num_lines,).
        slope: strictly descending, shape (num_lines,).

    Returns:
        The lines on the envelope, in the order of their pieces, and the x at which each but the first begins.
    """
    hull, begins = [0], [0.0]
    values, slopes = value.tolist(), slope.tolist()
    for line in range(1, len(values)):
        while True:
            last = hull[-1]
            begin = (values[line] - values[last]) / (slopes[last] - slopes[line])
            if len(hull) == 1 or begin > begins[-1]:
                break
            hull.pop()
            begins.pop()
        hull.append(line)
        begins.append(begin)
    return np.array(hull, dtype=np.int64), np.array(begins[1:])


class _BoxGroup:
    """States whose two link times vary apart, in boxes of near states.

    Slopes are >= 0, so within a box a row is worth at least what it is at the lower corner and at most what it is at
    the upper corner; a row whose least is above another's most is nowhere best in that box.
    """

    def __init__(self, lines: Lines, u: FloatArray, v: FloatArray, weights: FloatArray) -> None:
        self._lines, self._u, self._v, self._weights = lines, u, v, weights
        num_strips = max(1, int(np.sqrt(len(u) / _STATES_PER_BOX)))
        strips = np.array_split(np.argsort(u), num_strips)
        self._boxes = [
            box for strip in strips for box in np.array_split(strip[np.argsort(v[strip])], num_strips) if len(box)
        ]
        self._corners = np.array([[u[b].min(), v[b].min(), u[b].max(), v[b].max()] for b in self._boxes])

    def sums(self, prices: FloatArray) -> FloatArray:
        columns = self._columns(prices)
        parts = (self._lines.constant, self._lines.down, self._lines.up)
        factors = (self._weights, self._weights * self._u, self._weights * self._v)
        loads = (np.bincount(columns, factor, len(self._lines.rows)) for factor in factors)
        return np.asarray(np.sum([part @ load for part, load in zip(parts, loads, strict=True)], axis=0))

    def rows(self, prices: FloatArray) -> IntArray:
        return np.asarray(self._lines.rows[self._columns(prices)])

    def _columns(self, prices: FloatArray) -> IntArray:
        """Return the best column of each state, shape (num_states,)."""
        constant, down, up = self._lines.priced(prices)
        best = np.empty(len(self._u), dtype=np.int64)
        for tile in tiles(len(self._boxes), max(1, _PAIRS_AT_ONCE // len(constant))):
            low_u, low_v, high_u, high_v = self._corners[tile].T[..., None]
            least = constant + down * low_u + up * low_v
            most = np.min(constant + down * high_u + up * high_v, axis=1, keepdims=True)
            is_rival = least <= most + 1e-12 * (np.abs(least) + np.abs(most))
            for box, rivals in zip(self._boxes[tile], is_rival, strict=True):
                few = np.flatnonzero(rivals)
                worth = constant[few] + down[few] * self._u[box, None] + up[few] * self._v[box, None]
                best[box] = few[np.argmin(worth, axis=1)]
        return best


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
        chunk = max(1, _PAIRS_AT_ONCE // costs.shape[2])
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
