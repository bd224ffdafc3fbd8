"""The cells of a vector environment: their state, their randomness, and the sums of their episodes.

Randomness is drawn as in `megopt.envs.devices`: one generator moves channels and arrivals and draws for every device in
every slot; new episodes start from a generator made afresh from the seed and the number of slots so far. So what a cell
meets depends on the seed, its index and its own actions: no neighbour's reset changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import cell_dynamics
from megopt.envs.cell_dynamics import CellParams, CellState, CellTransition
from megopt.envs.cell_episode import CellReport, CellSums
from megopt.problem import costs, reward, violations

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsEnded:
    """What is known of episodes that ended in a slot; meaningful where `CellsStep.is_done`.

    Attributes:
        observation: last observation of each episode, shape (num_cells, num_fields).
        report: what each episode came to.
    """

    observation: NDArray[np.float32]
    report: CellReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsStep:
    """What one slot gave; fields of shape (num_cells,) unless stated.

    Attributes:
        observation: what is seen next, shape (num_cells, num_fields); of a new episode where one began.
        reward: sum of the rewards of the slot's requests; 0 without one.
        costs: sum over the slot's requests, one column per limit, shape (num_cells, num_limits).
        cost: sum of the violations over limits and requests.
        num_requests: requests decided in the slot.
        num_lost: requests that found no place at their device.
        num_late: requests that missed the deadline; None without one.
        is_done: whether the episode ended.
        ended: the episodes that ended; None where none did.
    """

    observation: NDArray[np.float32]
    reward: FloatArray
    costs: FloatArray
    cost: FloatArray
    num_requests: IntArray
    num_lost: IntArray
    num_late: IntArray | None
    is_done: BoolArray
    ended: CellsEnded | None


class Cells:
    """`num_cells` cells from a seed on.

    Attributes:
        state: state in which the waiting requests are.
        decided: state in which the latest requests were decided.
        latest: what the latest slot led to; None before the first.
        is_over: cells whose episode has ended and that were not reset since, shape (num_cells,).
    """

    def __init__(self, params: CellParams, num_cells: int, seed: int) -> None:
        self.params = params
        self.num_cells = num_cells
        self.is_over: BoolArray = np.zeros(num_cells, dtype=bool)
        self.latest: CellTransition | None = None
        self._seed = seed
        self._clock = 0
        self._attempt = 0
        self._moves = self._generator(0)
        self.state = self.decided = self._fresh()
        self._sums = CellSums(params, num_cells)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def _fresh(self) -> CellState:
        """Return first states for all cells: those of this clock and attempt."""
        fresh = cell_dynamics.initial(self.params, self._generator(1, self._clock, self._attempt), self.num_cells)
        self._attempt += 1
        return fresh

    def reset(self, is_reset: BoolArray) -> None:
        """Begin new episodes in the cells `is_reset` (num_cells,)."""
        self.state = self.state.where(is_reset, self._fresh())
        self.is_over = self.is_over & ~is_reset
        self._sums.clear(is_reset)

    def observe(self) -> NDArray[np.float32]:
        """Return what the cells show, shape (num_cells, num_fields)."""
        return cell_dynamics.observe(self.params, self.state)

    def step(self, rows: IntArray, weights: FloatArray | None, *, is_autoreset: bool) -> CellsStep:
        """Decide the waiting requests.

        Args:
            rows: rows of the action table, legal where a request waits, shape (num_cells x num_devices,).
            weights: weights of the shares of the band, same shape; None where the allocation needs none.
            is_autoreset: whether cells whose episode ends begin a new one at once.
        """
        self._clock, self._attempt = self._clock + 1, 0
        params, problem = self.params, self.params.problem
        made = cell_dynamics.transition(params, self.state, rows, self._moves, weights)
        self.latest, self.decided, self.state = made, self.state, made.state
        violated = np.sum(violations(made.outcome, problem), axis=1)
        is_late = made.outcome.latency_s > params.deadline_s if params.has_deadline else None
        self._sums.add(made, violated, is_late)
        ended = self._end(made.is_truncated, is_autoreset) if np.any(made.is_truncated) else None
        decided = made.is_decided
        return CellsStep(
            observation=self.observe(),
            reward=self._per_cell(np.where(decided, reward(made.outcome, problem), 0.0)),
            costs=self._per_cell(np.where(decided[:, np.newaxis], costs(made.outcome, problem), 0.0)),
            cost=self._per_cell(np.where(decided, violated, 0.0)),
            num_requests=self._per_cell(decided.astype(np.int64)),
            num_lost=self._per_cell(made.num_lost),
            num_late=None if is_late is None else self._per_cell((decided & is_late).astype(np.int64)),
            is_done=made.is_truncated,
            ended=ended,
        )

    def _per_cell(self, column: NDArray[Number]) -> NDArray[Number]:
        """Return the sums over each cell's devices of a column (num_flat,) or of columns (num_flat, num_columns)."""
        of_cells = column.reshape(self.num_cells, self.params.num_devices, *column.shape[1:])
        return np.asarray(of_cells.sum(axis=1))

    def _end(self, is_done: BoolArray, is_autoreset: bool) -> CellsEnded:
        """Return what ended, and begin anew where that is wanted."""
        ended = CellsEnded(observation=self.observe(), report=self._sums.report(self.state))
        if is_autoreset:
            self.reset(is_done)
        else:
            self.is_over = self.is_over | is_done
        return ended
