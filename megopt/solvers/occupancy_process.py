"""The decision process of a problem with memory: classes of link states x grid points of levels, one action per row.

On the grid, the next level goes to its two neighbours with the weights of linear interpolation. That keeps its mean and
spreads it by up to half a step, the discretisation error that `occupancy_simulation` measures. The link is independent
from request to request and enters as classes of states, over which every affine cost keeps its mean exactly.
Source: H. Kushner and P. Dupuis, Numerical Methods for Stochastic Control Problems in Continuous Time, 2001, chapter 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.solvers.brute_force import RowCosts
from megopt.solvers.occupancy import DecisionProcess
from megopt.solvers.occupancy_levels import Level, LinkClasses
from megopt.system.link import LinkState
from megopt.system.outcome import AffineCost

_MOST_PAIRS = 400_000
"""States x rows beyond which the linear program takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelProcess:
    """A decision process over link classes x grid points of levels, and what it was made from.

    Attributes:
        process: state = class * num_grid + point, the last level fastest; one action per row.
        table: the rows.
        problem: objective and limits; the levels add one cost each, after those of the problem.
        levels: the levels.
        classes: the classes of the link.
    """

    process: DecisionProcess
    table: ActionTable
    problem: Problem
    levels: tuple[Level, ...]
    classes: LinkClasses

    @property
    def shape(self) -> tuple[int, ...]:
        """Grid points per level."""
        return tuple(level.num_points for level in self.levels)


def level_process(
    table: ActionTable, link: LinkState, problem: Problem, levels: Sequence[Level], num_classes: int = 8
) -> LevelProcess:
    """Return the decision process of `problem` with the memory of `levels`.

    Args:
        table: rows to choose from.
        link: states to make the link classes from, shape (num_states,).
        problem: objective, and limits on the long-run means.
        levels: queue, battery, or both.
        num_classes: link classes [1].

    Raises:
        ProblemError: if there are too many pairs of state and row, no states, a class without a usable row, or a
            quantity was not measured.
    """
    from scipy import sparse

    if not len(link.snr):
        message = "decision process: the link has 0 states; expected at least one; draw some from a channel"
        raise ProblemError(message)
    classes, levels = LinkClasses.of(link, num_classes), tuple(levels)
    grid = np.meshgrid(*(level.grid for level in levels), indexing="ij")
    points = [part.ravel() for part in grid]
    num_pairs = len(classes.shares) * len(points[0]) * len(table)
    if num_pairs > _MOST_PAIRS:
        message = (
            f"decision process: {len(classes.shares)} link classes x {len(points[0])} grid points x {len(table)} rows "
            f"are {num_pairs:,} pairs; expected at most {_MOST_PAIRS:,}; take fewer points, classes or rows"
        )
        raise ProblemError(message)
    down, up = classes.down[:, None, None], classes.up[:, None, None]
    changes = [np.where(np.isfinite(gain), gain, 0.0) for gain in (level.gain.at(down, up) for level in levels)]
    moves, losses = _moves(levels, points, changes)
    objective, costs = pair_costs(table, link, problem, levels, [p[None, :, None] for p in points], (down, up))
    shape = (len(classes.shares) * len(points[0]), len(table))
    return LevelProcess(
        process=DecisionProcess(
            transition=sparse.kron(classes.shares[None, :], moves, format="csr"),
            objective=objective.reshape(shape),
            costs=np.concatenate([costs, losses], axis=-1).reshape(*shape, -1),
            ceilings=np.append(ceilings(problem), [level.loss_limit for level in levels]),
            names=(*(limit.quantity for limit in problem.limits), *(level.name for level in levels)),
        ),
        table=table,
        problem=problem,
        levels=levels,
        classes=classes,
    )


def pair_costs(
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    levels: Sequence[Level],
    points: Sequence[FloatArray],
    times: tuple[FloatArray, FloatArray],
) -> tuple[FloatArray, FloatArray]:
    """Return objective and costs of every row, with the wait for the levels in every latency.

    Args:
        table: the rows.
        link: only its round-trip time and radio powers are read.
        problem: objective and limits.
        levels: the levels.
        points: value of each level; these and the times broadcast to (.., num_rows).
        times: downlink and uplink times [s/bit].

    Returns:
        Objective, shape (.., num_rows), and costs, shape (.., num_rows, num_limits); not finite where unusable.
    """
    row_costs = RowCosts.of(table, link, problem)
    wait_s = sum((np.where(lv.is_waiting, point, 0.0) for lv, point in zip(levels, points, strict=True)), np.zeros(1))

    def worth(cost: AffineCost, quantity: str) -> FloatArray:
        value = cost.at(*times)
        return np.asarray(value + wait_s if quantity == "latency_s" else value + 0.0 * wait_s)

    objective = worth(row_costs.objective, problem.objective)
    costs = [worth(cost, limit.quantity) for cost, limit in zip(row_costs.limits, problem.limits, strict=True)]
    return objective, np.stack(costs, axis=-1) if costs else np.zeros((*objective.shape, 0))


def _moves(levels: tuple[Level, ...], points: list[FloatArray], changes: list[FloatArray]) -> tuple[Any, FloatArray]:
    """Return the transition between grid points and the mean loss of each level.

    Args:
        levels: the levels.
        points: value of each level at each grid point, shape (num_grid,) each.
        changes: gain of each level, shape (num_classes, 1, num_rows) each.

    Returns:
        Sparse matrix (num_classes * num_grid * num_rows, num_grid), and losses (num_classes, num_grid, num_rows,
        num_levels).
    """
    from scipy import sparse

    strides = np.cumprod([1, *(level.num_points for level in levels[:0:-1])])[::-1]
    shape = np.broadcast_shapes(changes[0].shape, (1, len(points[0]), 1))
    losses = np.zeros((*shape, len(levels)))
    choices = []
    for number, (level, point, change) in enumerate(zip(levels, points, changes, strict=True)):
        ends = []
        for arrival in level.arrivals:
            target, lost = level.moved(point[None, :, None], change + arrival)
            below, weight = level.neighbours(np.broadcast_to(target, shape))
            losses[..., number] += lost / len(level.arrivals)
            ends += [(strides[number] * (below + up), np.where(up, weight, 1.0 - weight)) for up in (0, 1)]
        choices.append([(index, share / len(level.arrivals)) for index, share in ends])
    num_pairs = int(np.prod(shape))
    moves = sparse.csr_array((num_pairs, len(points[0])))
    for combination in itertools.product(*choices):
        column = sum(index for index, _ in combination)
        share = np.prod([share for _, share in combination], axis=0)
        entries = (share.ravel(), (np.arange(num_pairs), np.asarray(column).ravel()))
        moves = moves + sparse.csr_array(entries, shape=moves.shape)
    return moves, losses
