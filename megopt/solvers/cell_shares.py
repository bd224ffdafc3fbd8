"""From prices to rows where airtime counts in the objective: exact shares for fixed rows, and changes of rows.

For fixed rows the cell is an `AllocationProblem` with deadlines, and `allocation.solve` gives its optimum f and prices.
At these prices f equals the sum of what the users' own pairs cost, less the budgets' worth. So rows with other choices
S cost at least f plus the sum over S of the differences of pairs, and only changes with a negative sum can gain. They
are tried, the most negative first, many in one call; if no pair is cheaper than its user's own, f is the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers import allocation
from megopt.solvers.allocation_model import AllocationProblem, AllocationSolution, Objective
from megopt.solvers.cell_dual import Dual, unit_price
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rounding import choose, repair

_NUM_MOVES = 10
_MOST_ROUNDS = 30
_MOST_SHARES = 200_000
"""Users times sets of rows that one call of `allocation.solve` gets."""
_NUM_STARTS = 4
_GAIN = 1e-11
"""Smallest relative gain that counts; less is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Rows (kept) with their best shares.

    Attributes:
        rows: shape (K,).
        value: objective to minimise; inf if the rows do not fit.
        bandwidth: w [B], shape (K,).
        power: p [P], shape (K,).
        prices: lambda B and mu P, shape (2,).
    """

    rows: IntArray
    value: float
    bandwidth: FloatArray
    power: FloatArray
    prices: FloatArray


def shared(pairs: Pairs, rows: IntArray) -> list[Shared]:
    """Return kept `rows`, shape (num_sets, K), each with its best shares; all sets in one call."""
    parts = [pairs.chosen(one) for one in rows]
    columns = {name: np.stack([getattr(part, name) for part in parts]) for name in ("fixed", "weighed", "payload")}
    floor = np.stack([part.needed for part in parts])
    found = _allocated(pairs, columns["weighed"], columns["payload"], floor)
    values = np.where(np.isfinite(found.values), found.values + np.sum(columns["fixed"], axis=1), np.inf)
    prices = np.stack([found.bandwidth_price, found.power_price], axis=1)
    return [
        Shared(rows=one, value=float(value), bandwidth=w, power=p, prices=price)
        for one, value, w, p, price in zip(
            rows, values, found.bandwidth_hz, found.transmit_power_w, prices, strict=True
        )
    ]


def _allocated(pairs: Pairs, weighed: FloatArray, payload: FloatArray, floor: FloatArray) -> AllocationSolution:
    """Return the shares of the cells (num_sets, K); payloads are in units of the band, so that B = P = 1."""
    is_sent = payload > 0.0
    deadline_s = np.divide(payload, floor, out=np.full(payload.shape, np.inf), where=floor > 0.0)
    problem = AllocationProblem(
        bits=payload / np.log(2.0),
        gain_to_noise_hz_per_w=np.broadcast_to(pairs.gain, payload.shape),
        bandwidth_hz=1.0,
        power_w=1.0,
        deadline_s=deadline_s,
        objective=Objective.WEIGHTED,
        latency_weight=np.divide(weighed, payload, out=np.zeros(payload.shape), where=is_sent),
        energy_weight=0.0,
    )
    return allocation.solve(problem)


def first_rows(pairs: Pairs) -> IntArray:
    """Return the best row of each user if band and power were shared evenly, shape (K,)."""
    num_users = len(pairs.gain)
    pace, rows = np.log1p(pairs.gain) / num_users, np.empty(num_users, dtype=np.int64)
    for block in pairs.blocks():
        even = pace[block.users, np.newaxis]
        reached = np.maximum(even, block.floor)
        value = block.fixed + block.weight * block.root**2 / reached
        value = np.where(np.isfinite(block.floor), value * np.maximum(block.floor / even, 1.0), np.inf)
        rows[block.users] = np.argmin(value, axis=1)
    return repair(pairs, choose(pairs, rows)).rows


def share_out(pairs: Pairs, dual: Dual) -> Shared:
    """Return the best rows found with their shares; the humblest rows have to fit."""
    starts = sorted(dual.tries, key=lambda one: -one.bound)[:_NUM_STARTS]
    sets = [repair(pairs, choose(pairs, one.rows)).rows for one in starts]
    best = min(shared(pairs, np.unique(np.stack(sets), axis=0)), key=lambda one: one.value)
    for _ in range(_MOST_ROUNDS):
        candidates = _candidates(pairs, best)
        if not len(candidates):
            break
        found = min(shared(pairs, candidates), key=lambda one: one.value)
        if found.value >= best.value - _GAIN * abs(best.value):
            break
        best = found
    return best


def _candidates(pairs: Pairs, best: Shared) -> IntArray:
    """Return sets of rows that could gain by one change, two changes, or all changes at once, (num_sets, K)."""
    users, rows, change = _cheaper(pairs, best)
    if not len(users):
        return np.zeros((0, len(best.rows)), dtype=np.int64)
    couples = [(i, j) for i, j in combinations(range(len(users)), 2) if users[i] != users[j]]
    singles = [(i,) for i in range(len(users))]
    ranked = sorted([*singles, *couples], key=lambda which: sum(change[i] for i in which))
    gaining = [which for which in ranked if sum(change[i] for i in which) < 0.0]
    room = max(1, _MOST_SHARES // len(best.rows))
    sets = [_changed(best.rows, users[list(which)], rows[list(which)]) for which in gaining[: room - 1]]
    responses, _ = pairs.best(_prices_of_pace(pairs, best))
    every = repair(pairs, choose(pairs, responses)).rows
    return np.unique(np.stack([every, *sets]), axis=0)


def _prices_of_pace(pairs: Pairs, best: Shared) -> FloatArray:
    """Return the price of a unit of pace of each user, shape (K,); next to nothing where the budgets have no price."""
    return unit_price(np.maximum(best.prices, 1e-300), pairs.gain)[0]


def _changed(rows: IntArray, users: IntArray, others: IntArray) -> IntArray:
    changed = rows.copy()
    changed[users] = others
    return changed


def _cheaper(pairs: Pairs, best: Shared) -> tuple[IntArray, IntArray, FloatArray]:
    """Return users, rows and change of the objective, at least, of the cheapest changes if any gains; else empty."""
    price = _prices_of_pace(pairs, best)
    parts = []
    for block in pairs.blocks():
        value, _ = block.values(price[block.users, np.newaxis])
        users = np.arange(len(pairs.gain))[block.users]
        own = (np.arange(len(users)), best.rows[block.users])
        change = value - value[own][:, np.newaxis]
        change[own] = np.inf
        num = min(_NUM_MOVES, change.size - 1)
        flat = np.argpartition(change, num, axis=None)[: num + 1]
        user, row = np.unravel_index(flat, change.shape)
        parts.append((users[user], row, change.ravel()[flat]))
    users, rows, change = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(change, kind="stable")[:_NUM_MOVES]
    order = order[np.isfinite(change[order])]
    if not len(order) or change[order[0]] >= -_GAIN * abs(best.value):
        order = order[:0]
    return users[order], rows[order], change[order]
