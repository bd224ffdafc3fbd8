"""Which rows of an action table are worth offering: the non-dominated set of every channel state, with a proof.

In a state, row a dominates row b if a is nowhere worse and somewhere better in the objectives. The sets come from
moocore; the proof is made without it: for every row that is left out, a witness, a row of the set that dominates it,
and for the rows of the set, that no row of the set dominates them. Dominance is transitive and there are finitely many
rows, so the two prove that the set is the whole non-dominated set, and nothing but that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.analysis.pareto import is_non_dominated
from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.problem import affine_cost
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_surface import problem_of
from megopt.solvers.brute_force import tiles
from megopt.system.link import LinkState

_PAIRS_AT_ONCE = 1 << 16
"""States x rows whose objectives are held at once."""
NONE = -1
"""Witness of a row that nothing dominates, or that has no finite objectives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFronts:
    """Non-dominated rows, state by state.

    Attributes:
        quantities: the objectives.
        is_kept: which rows no other dominates, shape (num_states, num_rows).
        is_finite: which rows have finite objectives; the others take no part, same shape.
        witness: a row of the set that dominates, `NONE` where there is none; same shape.
    """

    quantities: tuple[str, ...]
    is_kept: BoolArray
    is_finite: BoolArray
    witness: IntArray

    @property
    def is_certified(self) -> bool:
        """Whether exactly the rows that are left out have a witness, in every state."""
        return bool(np.array_equal(self.witness == NONE, self.is_kept | ~self.is_finite))

    @property
    def shares(self) -> FloatArray:
        """Share of the states in which each row is non-dominated [1], shape (num_rows,)."""
        return np.asarray(np.mean(self.is_kept, axis=0)) if len(self.is_kept) else np.zeros(self.is_kept.shape[1])

    @property
    def sizes(self) -> IntArray:
        """Number of non-dominated rows of each state, shape (num_states,)."""
        return np.asarray(np.count_nonzero(self.is_kept, axis=1))


def row_fronts(table: ActionTable, link: LinkState, quantities: tuple[str, ...], metric: str = "") -> RowFronts:
    """Return the non-dominated rows of every state, of equal rows all.

    Args:
        table: the rows.
        link: states, shape (num_states,).
        quantities: two to four different objectives.
        metric: the quality metric that the word "quality" stands for.

    Raises:
        ProblemError: if the objectives are no such list, or a quantity was not measured.
    """
    problem = problem_of(quantities, metric)
    costs = [affine_cost(table, link, problem, name) for name in quantities]
    shape = (len(link.snr), len(table))
    is_kept, is_finite = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    witness = np.full(shape, NONE, dtype=np.int64)
    for tile in tiles(shape[0], max(1, _PAIRS_AT_ONCE // max(1, shape[1]))):
        down, up = link.downlink_s_per_bit[tile, None], link.uplink_s_per_bit[tile, None]
        values = np.stack([np.broadcast_to(cost.at(down, up), (len(down), shape[1])) for cost in costs], axis=-1)
        is_finite[tile] = np.isfinite(values).all(axis=-1)
        for state, points in enumerate(values, tile.start):
            is_kept[state] = is_non_dominated(points)
            witness[state] = _witnesses(points, np.flatnonzero(is_kept[state]), is_finite[state])
    return RowFronts(quantities=quantities, is_kept=is_kept, is_finite=is_finite, witness=witness)


def _witnesses(points: FloatArray, front: IntArray, is_finite: BoolArray) -> IntArray:
    """Return for each row the first of `front` that dominates it, `NONE` where none does, shape (num_rows,)."""
    rivals = points[front][:, None]
    dominates = np.all(rivals <= points, axis=-1) & np.any(rivals < points, axis=-1) & is_finite
    if not len(front):
        return np.full(len(points), NONE, dtype=np.int64)
    return np.where(dominates.any(axis=0), front[dominates.argmax(axis=0)], NONE)
