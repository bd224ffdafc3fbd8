"""All pairs of user and row: their objective, the pace that their limits ask for, and the best rows at prices.

A pace is y = S/t with S = Z ln 2/B, as in `cell_rates`; the limits of user k ask for at least floor_ka =
S_a/(latest t). At the price x of a unit of pace a pair costs

    weight F + min over y >= floor of (weight A S/y + x y),   attained at y = max(sqrt(weight A S/x), floor).

Rows that another row beats in every coefficient are left out beforehand: no user at no price would need them. What is
left is gone over in blocks that fit into the cache; nothing of the size users x rows is kept but the floors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray, Real
from megopt.errors import ProblemError
from megopt.problem import affine_cost
from megopt.schemes.action_table import ActionTable
from megopt.solvers.cell_model import CellProblem
from megopt.system.outcome import AffineCost

_BLOCK_PAIRS = 1 << 15
_NO_PACE = 1e-290
"""Floor of rows without payload: their price is then 0 and no division by 0 is met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some users of one kind with all their rows, each field ready to broadcast to (num_users, num_rows).

    Attributes:
        users: who they are, shape (num_users,).
        fixed: weight F, shape (num_users or 1, num_rows).
        root: sqrt(A S), shape (num_rows,).
        weight: weights of the users, shape (num_users, 1).
        floor: least pace, shape (num_users, num_rows); inf where no pace keeps the limits.
    """

    users: slice | IntArray
    fixed: FloatArray
    root: FloatArray
    weight: FloatArray
    floor: FloatArray

    def pace(self, price: FloatArray) -> FloatArray:
        """Return the best paces at prices of shape (num_users, 1)."""
        if not np.any(self.root):
            return self.floor
        return np.asarray(np.maximum(np.sqrt(self.weight / price) * self.root, self.floor))

    def values(self, price: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what each pair costs at prices of shape (num_users, 1), and its best pace."""
        pace = self.pace(price)
        value = price * pace
        value += self.fixed
        if np.any(self.root):
            value += self.weight * (self.root * self.root) / pace
        return value, pace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """The users of one table; rows are those kept."""

    users: IntArray
    rows: IntArray
    fixed: FloatArray
    root: FloatArray
    floor: FloatArray
    payload: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What chosen rows are, fields of shape (K,): row kept, weight F, weight A S, S [s], least pace."""

    rows: IntArray
    fixed: FloatArray
    weighed: FloatArray
    payload: FloatArray
    floor: FloatArray

    @property
    def needed(self) -> FloatArray:
        """Least pace, exactly 0 where none is asked for, shape (K,)."""
        return np.where(self.floor > _NO_PACE, self.floor, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All pairs of a cell.

    Attributes:
        kinds: the users of each table.
        gain: SNR of each user on an even spread [1], 1 where it is dead, shape (K,).
        weights: shape (K,).
        is_airtime_free: whether the objective does not grow with the airtime, as quality does not.
        is_lost: users for whom no row keeps the limits at any pace, shape (K,).
    """

    kinds: tuple[_Kind, ...]
    gain: FloatArray
    weights: FloatArray
    is_airtime_free: bool
    is_lost: BoolArray

    @classmethod
    def of(cls, cell: CellProblem) -> Pairs:
        """Return the pairs of `cell`.

        Raises:
            ProblemError: if a payload could take forever at no cost.
        """
        kinds = tuple(_kind(cell, table, np.flatnonzero(cell.kinds == kind)) for kind, table in enumerate(cell.tables))
        is_lost = np.zeros(cell.num_users, dtype=bool)
        for kind in kinds:
            is_lost[kind.users] = ~np.any(np.isfinite(kind.floor), axis=1)
            if np.any((kind.floor <= _NO_PACE) & (kind.payload > 0.0) & (kind.root == 0.0)):
                message = (
                    f"cell: objective {cell.problem.objective!r} lets payloads take forever; expected a finite limit "
                    "that grows with the airtime for every user, such as latency_s; add one to problem.limits"
                )
                raise ProblemError(message)
        return cls(
            kinds=kinds,
            gain=np.where(cell.link.snr > 0.0, cell.link.snr, 1.0),
            weights=np.asarray(cell.weights),
            is_airtime_free=not any(np.any(kind.root) for kind in kinds),
            is_lost=is_lost,
        )

    def blocks(self) -> Iterator[Block]:
        """Yield all pairs, block by block."""
        for kind in self.kinds:
            step = max(1, _BLOCK_PAIRS // max(len(kind.rows), 1))
            for start in range(0, len(kind.users), step):
                part = slice(start, start + step)
                users = kind.users[part]
                yield Block(
                    users=slice(users[0], users[-1] + 1) if users[-1] - users[0] + 1 == len(users) else users,
                    fixed=kind.fixed if len(kind.fixed) == 1 else kind.fixed[part],
                    root=kind.root,
                    weight=self.weights[users, np.newaxis],
                    floor=kind.floor[part],
                )

    def chosen(self, rows: IntArray) -> Chosen:
        """Return what the kept `rows` (K,) are."""
        columns = {name: np.empty(len(rows)) for name in ("fixed", "weighed", "payload", "floor")}
        for kind in self.kinds:
            mine = rows[kind.users]
            within = np.arange(len(mine))
            columns["fixed"][kind.users] = kind.fixed[np.minimum(within, len(kind.fixed) - 1), mine]
            columns["weighed"][kind.users] = self.weights[kind.users] * kind.root[mine] ** 2
            columns["payload"][kind.users] = kind.payload[mine]
            columns["floor"][kind.users] = kind.floor[within, mine]
        return Chosen(rows=rows, **columns)

    def original(self, rows: IntArray) -> IntArray:
        """Return the rows of the users' tables behind the kept `rows`, each (K,)."""
        found = np.empty(len(rows), dtype=np.int64)
        for kind in self.kinds:
            found[kind.users] = kind.rows[rows[kind.users]]
        return found

    def humblest(self) -> IntArray:
        """Return the row of each user with the least floor, of several the best, shape (K,)."""
        rows = np.empty(len(self.gain), dtype=np.int64)
        for block in self.blocks():
            least = np.min(block.floor, axis=1, keepdims=True)
            rows[block.users] = np.argmin(np.where(block.floor <= least, block.fixed, np.inf), axis=1)
        return rows

    def best(self, price: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the best row of each user at the `price` of its pace, and what it costs, all (K,)."""
        rows, values = np.empty(len(self.gain), dtype=np.int64), np.empty(len(self.gain))
        for block in self.blocks():
            value, _ = block.values(price[block.users, np.newaxis])
            found = np.argmin(value, axis=1)
            rows[block.users] = found
            values[block.users] = value[np.arange(len(found)), found]
        return rows, values


def _kind(cell: CellProblem, table: ActionTable, users: IntArray) -> _Kind:
    """Return the pairs of the users of one table."""
    goal = affine_cost(table, cell.link, cell.problem, cell.problem.objective)
    limits = [affine_cost(table, cell.link, cell.problem, limit.quantity) for limit in cell.problem.limits]
    coefficients = [table.work.downlink_bits]
    for cost in (goal, *limits):
        coefficients += [cost.constant, cost.per_downlink, cost.per_uplink]
    rows = _undominated(np.stack(coefficients))
    bits = table.work.downlink_bits[rows]
    payload, up_s = bits * np.log(2.0) / cell.bandwidth_hz, _of_users(cell.link.uplink_s_per_bit, cell, users)
    weight, fixed = cell.weights[users, np.newaxis], _without_downlink(goal, rows, up_s)
    fixed = fixed if np.all(weight == 1.0) else fixed * weight
    latest = np.full((len(users), len(rows)), np.inf)
    for cost, ceiling in zip(limits, cell.ceilings[users].T, strict=True):
        room = ceiling[:, np.newaxis] - _without_downlink(cost, rows, up_s)
        latest = np.minimum(latest, _until(room, _per_second(cost, rows, bits)))
    is_dead = _of_users(cell.link.snr, cell, users)[:, 0] <= 0.0
    latest[np.ix_(is_dead, bits > 0.0)] = -1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = np.maximum(np.where(bits > 0.0, payload / latest, 0.0), _NO_PACE)
    is_usable = (latest >= 0.0) & ~((bits > 0.0) & (latest == 0.0)) & np.isfinite(fixed)
    return _Kind(
        users=users,
        rows=rows,
        fixed=np.where(np.isfinite(fixed), fixed, np.inf),
        root=np.sqrt(_per_second(goal, rows, bits) * payload),
        floor=np.where(is_usable, floor, np.inf),
        payload=payload,
    )


def _of_users(values: Real, cell: CellProblem, users: IntArray) -> FloatArray:
    """Return the entries of `users` of what may be one number for all, shape (num_users, 1)."""
    return np.asarray(np.broadcast_to(values, (cell.num_users,))[users, np.newaxis])


def _without_downlink(cost: AffineCost, rows: IntArray, up_s_per_bit: FloatArray) -> FloatArray:
    """Return a cost of `rows` but for the downlink, shape (num_users or 1, num_rows)."""
    per_uplink = cost.per_uplink[rows]
    if not np.any(per_uplink):
        return np.asarray(cost.constant[np.newaxis, rows])
    with np.errstate(invalid="ignore"):
        return np.asarray(cost.constant[rows] + np.where(per_uplink == 0.0, 0.0, per_uplink * up_s_per_bit))


def _per_second(cost: AffineCost, rows: IntArray, bits: FloatArray) -> FloatArray:
    """Return how a cost of `rows` grows with the airtime of their payload, shape (num_rows,); 0 without payload."""
    return np.divide(cost.per_downlink[rows], bits, out=np.zeros(len(rows)), where=bits > 0.0)


def _until(room: FloatArray, per_second: FloatArray) -> FloatArray:
    """Return the longest airtime within `room`, both (num_users or 1, num_rows); -1 where none is, or room is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        until = np.where(per_second > 0.0, room / per_second, np.where(room >= 0.0, np.inf, -1.0))
    return np.where(np.isnan(until), -1.0, until)


def _undominated(coefficients: FloatArray) -> IntArray:
    """Return the columns of (num_coefficients, num_rows) that no other column is at most in every coefficient.

    Of equal columns the first stays; columns with NaN are left out, as they keep no limit.
    """
    usable = np.flatnonzero(~np.any(np.isnan(coefficients), axis=0))
    order = usable[np.lexsort(coefficients[:, usable][::-1])]  # whoever beats a column comes before it
    columns, kept = coefficients[:, order], np.ones(len(order), dtype=bool)
    for index in range(len(order)):
        if kept[index]:
            is_beaten = np.all(columns[:, index + 1 :] >= columns[:, index : index + 1], axis=0)
            kept[index + 1 :] &= ~is_beaten
    return np.sort(order[kept])
