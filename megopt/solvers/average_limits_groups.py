"""Groups of channel states in which the best rows for given prices are found together.

States with one link time share the lower envelope of one line per row: with the states sorted once, and the sums of
their weights and times, an average costs O(rows log rows) however many states there are. Where the two link times vary
apart, boxes of near states rule out all but a few rows, and those are compared state by state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.solvers.brute_force import RowCosts, tiles

PAIRS_AT_ONCE = 1 << 20
"""States x rows, or boxes x rows, whose worth is held at once."""
_STATES_PER_BOX = 256
_SAME_RATIO = 1e-12
"""Relative spread of u_up / u_down up to which it counts as constant."""


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


def group_of(lines: Lines, u: FloatArray, v: FloatArray, weights: FloatArray) -> LineGroup | BoxGroup:
    """Return a group of states with one link time where that is enough, else with two."""
    if not np.any(lines.up) or not np.any(v):
        return LineGroup(lines, lines.down, u, weights)
    if not np.any(lines.down) or not np.any(u):
        return LineGroup(lines, lines.up, v, weights)
    ratio = float(np.sum(v) / np.sum(u))
    if np.allclose(v, ratio * u, rtol=_SAME_RATIO, atol=0.0):
        return LineGroup(lines, lines.down + ratio * lines.up, u, weights)
    return BoxGroup(lines, u, v, weights)


class LineGroup:
    """States that differ in one link time x; `slope` is the growth of each quantity with x."""

    def __init__(self, lines: Lines, slope: FloatArray, x: FloatArray, weights: FloatArray) -> None:
        self._lines, self._slope, self._x = lines, slope, x
        order = np.argsort(x)
        self._sorted = x[order]
        self._mass = np.concatenate([[0.0], np.cumsum(weights[order])])
        self._moment = np.concatenate([[0.0], np.cumsum(weights[order] * self._sorted)])

    def sums(self, prices: FloatArray) -> FloatArray:
        """Return the weighted sum of objective and limited costs under the best rows, shape (1 + num_limits,)."""
        columns, edges = self._envelope(prices)
        ends = np.concatenate([[0], np.searchsorted(self._sorted, edges), [len(self._sorted)]])
        mass, moment = np.diff(self._mass[ends]), np.diff(self._moment[ends])
        return np.asarray(self._lines.constant[:, columns] @ mass + self._slope[:, columns] @ moment)

    def rows(self, prices: FloatArray) -> IntArray:
        """Return the best row of each state, shape (num_states,)."""
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


class BoxGroup:
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
        """Return the weighted sum of objective and limited costs under the best rows, shape (1 + num_limits,)."""
        columns = self._columns(prices)
        parts = (self._lines.constant, self._lines.down, self._lines.up)
        factors = (self._weights, self._weights * self._u, self._weights * self._v)
        loads = (np.bincount(columns, factor, len(self._lines.rows)) for factor in factors)
        return np.asarray(np.sum([part @ load for part, load in zip(parts, loads, strict=True)], axis=0))

    def rows(self, prices: FloatArray) -> IntArray:
        """Return the best row of each state, shape (num_states,)."""
        return np.asarray(self._lines.rows[self._columns(prices)])

    def _columns(self, prices: FloatArray) -> IntArray:
        """Return the best column of each state, shape (num_states,)."""
        constant, down, up = self._lines.priced(prices)
        best = np.empty(len(self._u), dtype=np.int64)
        for tile in tiles(len(self._boxes), max(1, PAIRS_AT_ONCE // len(constant))):
            low_u, low_v, high_u, high_v = self._corners[tile].T[..., None]
            least = constant + down * low_u + up * low_v
            most = np.min(constant + down * high_u + up * high_v, axis=1, keepdims=True)
            is_rival = least <= most + 1e-12 * (np.abs(least) + np.abs(most))
            for box, rivals in zip(self._boxes[tile], is_rival, strict=True):
                few = np.flatnonzero(rivals)
                worth = constant[few] + down[few] * self._u[box, None] + up[few] * self._v[box, None]
                best[box] = few[np.argmin(worth, axis=1)]
        return best
