"""From a mixture of prices to one row per state: at most as many states as there are limits need to randomise.

The mixed prices agree on the row of almost every state. In the states where they differ, a linear program chooses
between their rows under what the limits leave; a vertex of it is fractional in at most num_limits states. Where they
differ in very many states, as with rows whose costs do not depend on the link, the program first chooses for cells of
states at once, and only the few fractional cells are opened up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers.average_limits_dual import Mixture, excess_scales
from megopt.solvers.average_limits_highs import linear_program
from megopt.solvers.average_limits_oracle import Oracle
from megopt.solvers.brute_force import tiles

_CELLS_AT_ONCE = 1024
_SUMMED_AT_ONCE = 1 << 15
_WHOLE = 1e-9
"""A share this close to 0 or 1 is 0 or 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A state in which the optimum randomises.

    Attributes:
        state: number of the state.
        rows: rows to choose between, ascending, shape (num_rows,).
        shares: probability of each, > 0, sums to 1, shape (num_rows,).
    """

    state: int
    rows: IntArray
    shares: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A row for every state, and the few states that randomise.

    Attributes:
        rows: row of each state, the most probable one where it randomises, -1 if none; shape (num_states,).
        splits: the states that randomise, at most one per limit.
    """

    rows: IntArray
    splits: tuple[Split, ...]


def recover(oracle: Oracle, mixture: Mixture, weights: FloatArray, ceilings: FloatArray) -> Choice:
    """Return one row per state, but for the splits, that costs no more than `mixture` and keeps the limits with it.

    Args:
        oracle: the rows over the states.
        mixture: feasible prices and shares.
        weights: weight of each state [1], shape (num_states,).
        ceilings: finite limits, shape (num_limits,).
    """
    candidates = np.stack([oracle.rows(prices) for prices in mixture.prices])
    rows = candidates[np.argmax(mixture.shares)].copy()
    weights = np.where(oracle.served, weights, 0.0)
    weights = weights / np.sum(weights)
    is_open = np.any(candidates != candidates[0], axis=0) & (weights > 0.0)
    settled = np.flatnonzero(~is_open & (weights > 0.0))
    spent = weighted_sums(oracle, settled, rows, weights)[1:]
    states = _in_order(oracle, np.flatnonzero(is_open), rows)
    largest = np.max(np.abs(oracle.costs(states, rows[states])[1:]), axis=1, initial=0.0)
    shares = np.tile(mixture.shares, (len(states), 1))
    while len(states):
        costs = np.stack([weights[states] * oracle.costs(states, rows_of[states]) for rows_of in candidates])
        starts = np.linspace(0, len(states), min(len(states), _CELLS_AT_ONCE), endpoint=False).astype(np.int64)
        mixed = np.einsum("kqs,sk->q", costs, shares)[1:]
        cells = np.add.reduceat(costs, starts, axis=2)
        # Rounding may leave the mixture a hair over a limit; then that much is allowed here too.
        chosen = _vertex(cells, np.maximum(ceilings - spent, mixed), excess_scales(ceilings, largest))
        cell_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(states))))
        shares = chosen[cell_of]
        rows[states] = candidates[np.argmax(shares, axis=1), states]
        is_whole = np.max(shares, axis=1) >= 1.0 - _WHOLE
        spent += np.einsum("kqs,sk->q", costs[:, :, is_whole], shares[is_whole])[1:]
        is_last = len(starts) == len(states)
        states, shares = states[~is_whole], shares[~is_whole]
        if is_last:
            break
    return _choice(rows, states, candidates[:, states], shares)


def weighted_sums(oracle: Oracle, states: IntArray, rows: IntArray, weights: FloatArray) -> FloatArray:
    """Return the sums of objective and costs of `rows` over `states` by weight, shape (1 + num_limits,).

    Args:
        oracle: the rows over the states.
        states: states to sum over, shape (num_picked,).
        rows: row of every state, shape (num_states,).
        weights: weight of every state [1], shape (num_states,).
    """
    sums = np.zeros(len(oracle.costs(states[:1], rows[states[:1]])))
    for tile in tiles(len(states), _SUMMED_AT_ONCE):
        sums += oracle.costs(states[tile], rows[states[tile]]) @ weights[states[tile]]
    return sums


def _in_order(oracle: Oracle, states: IntArray, rows: IntArray) -> IntArray:
    """Return the states so that neighbours have like costs, to make cells of."""
    if len(states) <= _CELLS_AT_ONCE:
        return states
    return states[np.argsort(np.sum(oracle.costs(states, rows[states])[1:], axis=0))]


def _vertex(cells: FloatArray, room: FloatArray, scales: FloatArray) -> FloatArray:
    """Return the share of each column in each cell, shape (num_cells, num_columns), at a vertex of the best ones.

    Args:
        cells: objective and costs, shape (num_columns, 1 + num_limits, num_cells).
        room: what the cells may cost together, shape (num_limits,).
        scales: size of each limit, shape (num_limits,).
    """
    from scipy import sparse

    num_columns, _, num_cells = cells.shape
    flat = cells.transpose(1, 2, 0).reshape(cells.shape[1], -1)
    unit = float(np.max(np.abs(flat[0]))) or 1.0
    one_each = sparse.kron(sparse.identity(num_cells), np.ones((1, num_columns)), format="csr")
    program = linear_program(flat[0] / unit, flat[1:] / scales[:, None], room / scales, one_each, np.ones(num_cells))
    assert program.is_feasible
    shares = np.where(program.x < _WHOLE, 0.0, program.x).reshape(num_cells, num_columns)
    return np.asarray(shares / np.sum(shares, axis=1, keepdims=True))


def _choice(rows: IntArray, states: IntArray, candidates: IntArray, shares: FloatArray) -> Choice:
    """Return the choice that is fractional in `states`; candidates (num_columns, num_states), shares transposed."""
    splits = []
    for state, options, probabilities in zip(states, candidates.T, shares, strict=True):
        distinct, which = np.unique(options, return_inverse=True)
        total: FloatArray = np.bincount(which, probabilities).astype(np.float64)
        rows[state] = distinct[np.argmax(total)]
        if np.count_nonzero(total) > 1:
            splits.append(Split(state=int(state), rows=distinct[total > 0.0], shares=total[total > 0.0]))
    return Choice(rows=rows, splits=tuple(splits))
