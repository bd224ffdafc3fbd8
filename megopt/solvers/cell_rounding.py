"""From prices to rows that fit: repair, fill and exchange where airtime costs nothing in the objective.

At the best prices a few users are torn between two rows, and the rows of all may ask for a little more or less than the
cell has. Rows are judged by `cell_rates.fit`, which is exact; the prices at which a choice uses up both budgets measure
how much of the cell a change takes or saves, which is exact to first order, and each change is checked before it stays.

repair    the changes that lose least per share saved, until the rows fit
fill      the changes that gain most per share taken, as long as they fit
exchange  the best pair of changes among the `_NUM_MOVES` that the prices call cheapest, as long as one gains
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers.cell_dual import Dual
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rates import Fit, fit

_NUM_MOVES = 400
_MOST_ROUNDS = 60
_NUM_STARTS = 3
_GAIN = 1e-12
"""Smallest relative gain that counts; less is rounding."""

_Worth: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]
"""How much a change is worth, from what it adds to the objective and the share it takes; 0 for none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Rows (kept) of all users, how far they fit, and their objective to minimise."""

    rows: IntArray
    fit: Fit
    value: float

    @property
    def is_fitting(self) -> bool:
        """Whether the cell has what the rows ask for; no tolerance, for shares have none."""
        return bool(self.fit.factor >= 1.0)

    @property
    def spare(self) -> float:
        """Worth of what is left of the budgets at the prices of `fit`; negative where they are exceeded."""
        budget = 1.0 + float(np.exp(self.fit.log_ratio))
        return budget * (1.0 - 1.0 / float(self.fit.factor))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moves:
    """Changes of one user each; fields of shape (num_moves,): user, row, gain in the objective, share taken."""

    users: IntArray
    rows: IntArray
    gain: FloatArray
    taken: FloatArray

    def take(self, which: IntArray) -> _Moves:
        """Return some of the moves."""
        return _Moves(**{name: getattr(self, name)[which] for name in self.__dataclass_fields__})

    def applied(self, rows: IntArray) -> IntArray:
        """Return `rows` after the moves."""
        moved = rows.copy()
        moved[self.users] = self.rows
        return moved


def choose(pairs: Pairs, rows: IntArray) -> Choice:
    """Return kept `rows` of shape (K,) with how far they fit."""
    chosen = pairs.chosen(rows)
    return Choice(rows=rows, fit=fit(chosen.needed, pairs.gain), value=float(np.sum(chosen.fixed)))


def round_up(pairs: Pairs, dual: Dual) -> Choice:
    """Return the best rows that fit, made from the rows of the best tries; the humblest rows have to fit."""
    starts = sorted(dual.tries, key=lambda one: -one.bound)[:_NUM_STARTS]
    found = [fill(pairs, repair(pairs, choose(pairs, one.rows))) for one in starts]
    return exchange(pairs, min(found, key=lambda one: one.value), dual.best.unit_price)


def repair(pairs: Pairs, choice: Choice) -> Choice:
    """Return rows that fit: who loses least per share saved gives way first."""
    while not choice.is_fitting:
        moves = _each(pairs, choice, _yielding)
        order = np.argsort(-moves.gain / -moves.taken, kind="stable")
        saved = np.cumsum(-moves.taken[order])
        num = int(np.searchsorted(saved, -choice.spare)) + 1
        choice = choose(pairs, moves.take(order[:num]).applied(choice.rows))
    return choice


def fill(pairs: Pairs, choice: Choice) -> Choice:
    """Return rows that fit and leave no room for the better row of any single user, for all that prices can tell."""
    room = np.inf
    for _ in range(_MOST_ROUNDS):
        room = min(room, choice.spare)

        def worth(fixed: FloatArray, taken: FloatArray, room: float = room) -> FloatArray:
            return np.where((taken <= room) & (fixed < 0.0), -fixed, 0.0)

        moves = _each(pairs, choice, worth)
        if not len(moves.users):
            break
        order = np.argsort(-moves.gain / np.maximum(moves.taken, 1e-300), kind="stable")
        num = max(1, int(np.searchsorted(np.cumsum(np.maximum(moves.taken[order], 0.0)), room, side="right")))
        found = _prefix(pairs, choice, moves.take(order[:num]))
        if found is None:  # the prices overlooked that even the first does not fit
            room = float(moves.taken[order[0]]) * (1.0 - 1e-9)
        else:
            choice, room = found, np.inf
    return choice


def _yielding(fixed: FloatArray, taken: FloatArray) -> FloatArray:
    """Return the worth of a pair as a way to save: the less it loses per share saved, the more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(taken < 0.0, 1.0 / (1.0 + np.maximum(fixed, 0.0) / -taken), 0.0)


def _prefix(pairs: Pairs, choice: Choice, moves: _Moves) -> Choice | None:
    """Return the choice after the longest tried prefix of `moves` that fits, by halving; None if none does."""
    num = len(moves.users)
    while num:
        found = choose(pairs, moves.take(np.arange(num)).applied(choice.rows))
        if found.is_fitting:
            return found
        num //= 2
    return None


def _each(pairs: Pairs, choice: Choice, worth: _Worth) -> _Moves:
    """Return the change of each user with the largest `worth` above 0; users without one are left out."""
    chosen = pairs.chosen(choice.rows)
    rows, gain, taken, best = (np.zeros(len(choice.rows)) for _ in range(4))
    for block in pairs.blocks():
        fixed = block.fixed - chosen.fixed[block.users, np.newaxis]
        price = choice.fit.cost[block.users, np.newaxis]
        with np.errstate(invalid="ignore"):
            share = price * (block.floor - chosen.floor[block.users, np.newaxis])
            value = worth(fixed, share)
        found = np.argmax(value, axis=1)
        within = np.arange(len(found))
        rows[block.users] = found
        gain[block.users] = -np.broadcast_to(fixed, share.shape)[within, found]
        taken[block.users] = share[within, found]
        best[block.users] = value[within, found]
    users = np.flatnonzero(best > 0.0)
    return _Moves(users=users, rows=rows[users].astype(np.int64), gain=gain[users], taken=taken[users])


def exchange(pairs: Pairs, choice: Choice, unit_price: FloatArray) -> Choice:
    """Return the rows after the best pairs of changes, one pair after the other, until none gains."""
    for _ in range(_MOST_ROUNDS):
        moves = _cheapest(pairs, choice, unit_price)
        found = _best_pair(pairs, choice, moves)
        if found is None:
            break
        choice = found
    return choice


def _cheapest(pairs: Pairs, choice: Choice, unit_price: FloatArray) -> _Moves:
    """Return the changes with the least objective plus price of their pace, and one that changes nothing."""
    chosen, parts = pairs.chosen(choice.rows), []
    for block in pairs.blocks():
        price = unit_price[block.users, np.newaxis]
        extra = block.floor - chosen.floor[block.users, np.newaxis]
        fixed = np.broadcast_to(block.fixed - chosen.fixed[block.users, np.newaxis], extra.shape)
        cost = fixed + price * extra
        users = np.arange(len(pairs.gain))[block.users]
        cost[np.arange(len(users)), choice.rows[block.users]] = np.inf
        num = min(_NUM_MOVES, cost.size - 1)
        flat = np.argpartition(cost, num, axis=None)[: num + 1]
        flat = flat[np.isfinite(cost.ravel()[flat])]
        user, row = np.unravel_index(flat, cost.shape)
        taken = (choice.fit.cost[block.users, np.newaxis] * extra).ravel()[flat]
        parts.append((cost.ravel()[flat], users[user], row, -fixed[user, row], taken))
    cost, user, row, gain, taken = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(cost, kind="stable")[:_NUM_MOVES]
    columns = {"users": user, "rows": row, "gain": gain, "taken": taken}
    nothing = {"users": [0], "rows": choice.rows[:1], "gain": [0.0], "taken": [0.0]}
    return _Moves(**{name: np.concatenate([nothing[name], column[order]]) for name, column in columns.items()})


def _best_pair(pairs: Pairs, choice: Choice, moves: _Moves) -> Choice | None:
    """Return the choice after the pair of changes of different users that gains most and fits; None if none gains."""
    first, second = np.triu_indices(len(moves.users), 1)
    gain, taken = moves.gain[first] + moves.gain[second], moves.taken[first] + moves.taken[second]
    is_apart = (moves.users[first] != moves.users[second]) | (first == 0)
    usable = np.flatnonzero((gain > _GAIN * abs(choice.value)) & (taken <= choice.spare) & is_apart)
    for index in usable[np.argsort(-gain[usable], kind="stable")][:8]:
        found = choose(pairs, moves.take(np.array([first[index], second[index]])).applied(choice.rows))
        if found.is_fitting:
            return found
    return None
