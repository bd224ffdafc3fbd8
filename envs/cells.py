"""The cells of a vector environment, each with one slot per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, IntArray
from megopt.envs import cell_dynamics
from megopt.envs.cell_episode import CellSums
from megopt.envs.cell_parameters import CellParams
from megopt.envs.cell_state import CellState, CellTransition, Number, per_cell
from megopt.envs.clockwork import Clockwork, Step
from megopt.problem import costs, reward, violations


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsStep(Step):
    """What one slot gave; beside the attributes of `Step`, shape (num_envs,).

    Attributes:
        num_requests: requests decided in the slot.
        num_lost: requests that found no place at their device.
        num_late: requests that missed the deadline; None without one.
    """

    num_requests: IntArray
    num_lost: IntArray
    num_late: IntArray | None


class Cells(Clockwork[CellState]):
    """`num_envs` cells from a seed on.

    Attributes:
        latest: what the latest slot led to; None before the first.
    """

    def __init__(self, params: CellParams, num_envs: int, seed: int) -> None:
        self.params = params
        self.latest: CellTransition | None = None
        self._sums: CellSums = CellSums(params, num_envs)
        super().__init__(num_envs, seed)

    def _initial(self, rng: np.random.Generator) -> CellState:
        return cell_dynamics.initial(self.params, rng, self.num_envs)

    def observe(self) -> NDArray[np.float32]:
        """Return what the cells show, shape (num_envs, num_fields)."""
        return cell_dynamics.observe(self.params, self.state)

    def step(self, rows: IntArray, weights: FloatArray | None, *, is_autoreset: bool) -> CellsStep:
        """Decide the waiting requests.

        Args:
            rows: rows of the action table, legal where a request waits, shape (num_cells x num_devices,).
            weights: weights of the shares of the band, same shape; None where the allocation needs none.
            is_autoreset: whether cells whose episode ends begin a new one at once.
        """
        params, problem = self.params, self.params.problem
        made = cell_dynamics.transition(params, self.state, rows, self._moves, weights)
        self._advance(made.state)
        self.latest = made
        violated = np.sum(violations(made.outcome, problem), axis=1)
        is_late = made.outcome.latency_s > params.deadline_s if params.has_deadline else None
        self._sums.add(made, violated, is_late)
        ended = self._end(made.is_truncated, is_autoreset)
        decided = made.is_decided
        return CellsStep(
            observation=self.observe(),
            reward=self._total(np.where(decided, reward(made.outcome, problem), 0.0)),
            costs=self._total(np.where(decided[:, np.newaxis], costs(made.outcome, problem), 0.0)),
            cost=self._total(np.where(decided, violated, 0.0)),
            num_requests=self._total(decided.astype(np.int64)),
            num_lost=self._total(made.num_lost),
            num_late=None if is_late is None else self._total((decided & is_late).astype(np.int64)),
            is_done=made.is_truncated,
            ended=ended,
        )

    def _total(self, column: NDArray[Number]) -> NDArray[Number]:
        return per_cell(column, self.params.num_devices)
