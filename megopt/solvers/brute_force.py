"""Every row in every state: the reference that the fast path of `exhaustive` is held against.

`choose_exactly` is the plain float64 evaluation. `choose` gives the same rows many times sooner: it evaluates every
cost of every row in every state in float32, in tiles that fit the cache, with limits widened by more than float32 errs.
So no feasible row is lost; the winners are checked in float64, and the few states in doubt go to `choose_exactly`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem, affine_cost, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import AffineCost

Float32Array = NDArray[np.float32]

NOWHERE = -1
"""Row number of a state without a feasible row."""

_SCREEN_TILE = 1 << 17
"""Rows x states screened at once: float32 costs and two masks take 0.75 MiB and stay in a level 2 cache."""
_EXACT_TILE = 1 << 15
"""Rows x states evaluated at once in float64."""
_CHECKED_AT_ONCE = 1 << 13
"""States whose chosen rows are checked at once in float64."""
_CACHE_LINE = 64
"""Bytes; the vector units read and write aligned buffers a fifth faster."""
_SCREEN_MARGIN = 2e-6
"""Relative widening of the screen: float32 rounds to 6e-8, and at most five roundings enter a cost."""
_HUGE = np.float32(1e38)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCosts:
    """Objective and limits of the rows of a table as affine costs; smaller is better in all of them.

    Attributes:
        objective: what to minimise, fields of shape (num_rows,).
        limits: the limited costs, in the order of the problem's limits.
        ceilings: what the limited costs may reach at most, shape (num_limits,).
    """

    objective: AffineCost
    limits: tuple[AffineCost, ...]
    ceilings: FloatArray

    @classmethod
    def of(cls, table: ActionTable, link: LinkState, problem: Problem) -> RowCosts:
        """Return the costs of `table` under `problem`.

        Raises:
            ProblemError: if the table is empty, a quantity was not measured, or a cost or a time is negative.
        """
        if not len(table):
            message = f"the action table of profile {table.profile} has no rows; expected at least one; add a scheme"
            raise ProblemError(message)
        for name in ("downlink_s_per_bit", "uplink_s_per_bit"):
            times = getattr(link, name)
            if times.size and not times.min() >= 0.0:
                message = f"link: {name} is negative or NaN; expected times >= 0, inf in outage; check the channel"
                raise ProblemError(message)
        return cls(
            objective=_checked(table, link, problem, problem.objective),
            limits=tuple(_checked(table, link, problem, limit.quantity) for limit in problem.limits),
            ceilings=ceilings(problem),
        )

    @property
    def uses_uplink(self) -> bool:
        """Whether any cost depends on the uplink."""
        return any(bool(np.any(cost.per_uplink != 0.0)) for cost in (self.objective, *self.limits))

    @property
    def is_objective_constant(self) -> bool:
        """Whether the objective of every row is the same in all states, as quality is."""
        return not (np.any(self.objective.per_downlink != 0.0) or np.any(self.objective.per_uplink != 0.0))

    def take(self, rows: IntArray) -> RowCosts:
        """Return the costs of `rows`, shape (num_taken,)."""
        return RowCosts(
            objective=_taken(self.objective, rows),
            limits=tuple(_taken(cost, rows) for cost in self.limits),
            ceilings=self.ceilings,
        )

    def usable(
        self, down: FloatArray, up: FloatArray, ceiling: FloatArray | None = None
    ) -> tuple[FloatArray, BoolArray]:
        """Return the objective and whether it is finite and within all limits, for times that broadcast with the rows.

        Args:
            down: downlink time u_down [s/bit].
            up: uplink time u_up [s/bit].
            ceiling: ceilings in place of the problem's own, shape (num_limits,).
        """
        value = self.objective.at(down, up)
        is_usable = np.isfinite(value)
        for cost, most in zip(self.limits, self.ceilings if ceiling is None else ceiling, strict=True):
            is_usable &= cost.at(down, up) <= most
        return value, is_usable


def _checked(table: ActionTable, link: LinkState, problem: Problem, quantity: str) -> AffineCost:
    """Return `affine_cost`, which for anything but quality has to be >= 0 with slopes >= 0."""
    cost = affine_cost(table, link, problem, quantity)
    if quantity == "quality":
        return cost
    is_negative = (cost.constant < 0.0) | (cost.per_downlink < 0.0) | (cost.per_uplink < 0.0)
    if np.any(is_negative):
        rows = ", ".join(str(row) for row in np.flatnonzero(is_negative)[:5])
        message = (
            f"action table of profile {table.profile}: {quantity} has a negative part in rows {rows}; "
            "seconds, joules and bits are >= 0; correct the table"
        )
        raise ProblemError(message)
    return cost


def _taken(cost: AffineCost, rows: IntArray) -> AffineCost:
    return AffineCost(**{field.name: getattr(cost, field.name)[rows] for field in fields(cost)})


def tiles(num_states: int, chunk_states: int) -> Iterator[slice]:
    """Yield slices of at most `chunk_states` states that cover `num_states`."""
    return (slice(start, min(start + chunk_states, num_states)) for start in range(0, num_states, chunk_states))


def choose_exactly(costs: RowCosts, down: FloatArray, up: FloatArray) -> IntArray:
    """Return the best usable row per state, lowest row among equals, `NOWHERE` if none; plain float64.

    Args:
        costs: the rows.
        down: downlink times [s/bit], shape (num_states,).
        up: uplink times [s/bit], shape (num_states,).
    """
    rows = np.empty(len(down), dtype=np.int64)
    for tile in tiles(len(down), max(1, _EXACT_TILE // len(costs.objective.constant))):
        value, is_usable = costs.usable(down[tile, None], up[tile, None])
        best = np.where(is_usable, value, np.inf).argmin(axis=1)
        rows[tile] = np.where(is_usable.any(axis=1), best, NOWHERE)
    return rows


def choose(costs: RowCosts, down: FloatArray, up: FloatArray, chunk_states: int | None = None) -> IntArray:
    """Return what `choose_exactly` returns, by way of a float32 screen over all rows and states.

    Args:
        costs: the rows.
        down: downlink times [s/bit], shape (num_states,).
        up: uplink times [s/bit], shape (num_states,).
        chunk_states: states per tile; as many as the cache holds if None.
    """
    chunk_states = chunk_states or max(1, _SCREEN_TILE // len(costs.objective.constant))
    rows, is_sure = _screened(costs, down, up, chunk_states)
    checks = list(zip(costs.limits, costs.ceilings, strict=True))
    if not costs.is_objective_constant:
        checks.append((costs.objective, np.finfo(np.float64).max))
    for tile in tiles(len(down), _CHECKED_AT_ONCE):
        for cost, most in checks:
            is_kept = _taken(cost, rows[tile]).at(down[tile], up[tile]) <= most
            is_sure[tile] &= is_kept | (rows[tile] == NOWHERE)  # NOWHERE takes the last row, whatever it says
    doubtful = np.flatnonzero(~is_sure)
    rows[doubtful] = choose_exactly(costs, down[doubtful], up[doubtful])
    return rows


def _screened(costs: RowCosts, down: FloatArray, up: FloatArray, chunk_states: int) -> tuple[IntArray, BoolArray]:
    """Return the best row of each state under widened limits and whether no other row comes near it."""
    rows, is_sure = np.full(len(down), NOWHERE, dtype=np.int64), np.ones(len(down), dtype=np.bool_)
    if not np.any(np.isfinite(costs.objective.constant)):
        return rows, is_sure
    # Overflow to inf is meant. Rows shorter than the ufunc buffer would be copied through it, at twice the time.
    with np.errstate(all="ignore"):
        np.setbufsize(16)
        screen = _Screen.of(costs, min(chunk_states, len(down)))
        down32, up32 = _no_more(down)[:, None], _no_more(up)[:, None]
        for tile in tiles(len(down), chunk_states):
            is_within = screen.within(down32[tile], up32[tile])
            if screen.objective is None:
                rows[tile] = screen.first(is_within)
            else:
                rows[tile], is_sure[tile] = screen.least(screen.objective, is_within, down32[tile], up32[tile])
    return rows, is_sure


def _no_more(values: FloatArray) -> Float32Array:
    """Return float32 values, those beyond its range brought down to it, so that 0 x u stays 0 in outage."""
    return _aligned_copy(np.minimum(np.nan_to_num(values, nan=0.0), np.finfo(np.float32).max))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A cost in float32: `per_downlink u_down + per_uplink u_up` against `level`, fields of shape (num_rows,)."""

    per_downlink: Float32Array
    per_uplink: Float32Array | None
    level: Float32Array

    @classmethod
    def of(cls, cost: AffineCost, level: FloatArray) -> _Line:
        uplink = _no_more(cost.per_uplink) if np.any(cost.per_uplink != 0.0) else None
        return cls(per_downlink=_no_more(cost.per_downlink), per_uplink=uplink, level=_aligned_copy(level))

    def airtime(self, down: Float32Array, up: Float32Array, out: Float32Array, spare: Float32Array) -> Float32Array:
        """Return the part that depends on the link, shape (num_states, num_rows), in `out`."""
        np.multiply(self.per_downlink, down, out=out)
        if self.per_uplink is not None:
            np.multiply(self.per_uplink, up, out=spare)
            np.add(out, spare, out=out)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screen:
    """Float32 lines of the rows that have an objective, and the buffers of one tile.

    Attributes:
        rows: row of the table behind each column, best first if the objective is constant, shape (num_columns,).
        limits: one line per limit; its level is the room below the ceiling, widened.
        objective: the line of the objective, its level the constant; None if the objective is constant.
        buffers: two, shape (chunk_states, num_columns).
        masks: two, shape (chunk_states, num_columns).
    """

    rows: IntArray
    limits: tuple[_Line, ...]
    objective: _Line | None
    buffers: tuple[Float32Array, Float32Array]
    masks: tuple[BoolArray, BoolArray]

    @classmethod
    def of(cls, costs: RowCosts, chunk_states: int) -> _Screen:
        """Return the screen of `costs` with buffers for tiles of `chunk_states` states."""
        rows = np.flatnonzero(np.isfinite(costs.objective.constant))
        if costs.take(rows).is_objective_constant:
            rows = rows[np.argsort(costs.objective.constant[rows], kind="stable")]
        costs = costs.take(rows)
        levels = [_widened_room(cost.constant, most) for cost, most in zip(costs.limits, costs.ceilings, strict=True)]
        shape = (chunk_states, len(rows))
        spare_shape = shape if costs.uses_uplink or not costs.is_objective_constant else (chunk_states, 0)
        return cls(
            rows=rows,
            limits=tuple(_Line.of(cost, level) for cost, level in zip(costs.limits, levels, strict=True)),
            objective=None if costs.is_objective_constant else _Line.of(costs.objective, costs.objective.constant),
            buffers=(_aligned(shape, np.float32), _aligned(spare_shape, np.float32)),
            masks=(_aligned(shape, np.bool_), _aligned(shape, np.bool_)),
        )

    def within(self, down: Float32Array, up: Float32Array) -> BoolArray:
        """Return which columns keep all widened limits, shape (num_states, num_columns), for times (num_states, 1)."""
        buffer, spare = (part[: len(down)] for part in self.buffers)
        is_within, is_kept = (part[: len(down)] for part in self.masks)
        if not self.limits:
            is_within.fill(True)
        for number, limit in enumerate(self.limits):
            airtime = limit.airtime(down, up, buffer, spare)
            np.less_equal(airtime, limit.level, out=is_kept if number else is_within)
            if number:
                np.logical_and(is_within, is_kept, out=is_within)
        return is_within

    def first(self, is_within: BoolArray) -> IntArray:
        """Return the row of the first column within the limits, shape (num_states,)."""
        column = is_within.argmax(axis=1)
        return np.where(_picked(is_within, column), self.rows[column], NOWHERE)

    def least(
        self, objective: _Line, is_within: BoolArray, down: Float32Array, up: Float32Array
    ) -> tuple[IntArray, BoolArray]:
        """Return the row of least objective within the limits, and whether the runner-up is clearly behind it."""
        value, penalty = (part[: len(down)] for part in self.buffers)
        objective.airtime(down, up, value, penalty)
        np.add(value, objective.level, out=value)
        # A masked copy branches on every element; arithmetic on the mask does not.
        np.copyto(penalty, np.logical_not(is_within, out=self.masks[1][: len(down)]))
        np.multiply(penalty, _HUGE, out=penalty)
        np.add(value, penalty, out=value)
        column = value.argmin(axis=1)
        best = _picked(value, column)
        value[np.arange(len(value)), column] = np.inf
        runner_up = _picked(value, value.argmin(axis=1))
        is_sure = (best < _HUGE) & (runner_up > best * (1.0 + _SCREEN_MARGIN))
        is_nowhere = ~is_within.any(axis=1)
        return np.where(is_nowhere, NOWHERE, self.rows[column]), is_sure | is_nowhere


def _aligned_copy(values: FloatArray) -> Float32Array:
    copy = _aligned(values.shape, np.float32)
    copy[...] = values
    return copy


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return an empty array that starts on a cache line."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + _CACHE_LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _picked(matrix: NDArray[Any], column: IntArray) -> NDArray[Any]:
    """Return one element per row of `matrix`, shape (num_states,)."""
    return matrix[np.arange(len(matrix)), column]


def _widened_room(constant: FloatArray, ceiling: float) -> FloatArray:
    """Return at least what the airtime may reach under `ceiling`, shape (num_rows,); -inf where nothing is allowed."""
    room = ceiling - constant
    widened = room + _SCREEN_MARGIN * np.abs(room) + 1e-14 * (np.abs(constant) + abs(ceiling)) + 1e-30
    if np.isinf(ceiling):
        return np.where(constant <= ceiling, ceiling, -np.inf)
    return np.where(np.isnan(constant), -np.inf, widened)
