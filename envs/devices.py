"""The devices of a vector environment, each with one request per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import dynamics
from megopt.envs.clockwork import Clockwork, Step
from megopt.envs.dynamics import EnvState
from megopt.envs.episode import EpisodeSums
from megopt.envs.parameters import EnvParams
from megopt.problem import costs, reward, violations


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesStep(Step):
    """What one request of each device gave; beside the attributes of `Step`, shape (num_envs,).

    Attributes:
        is_terminated: whether the battery is used up.
        is_truncated: whether the episode has had all its requests.
        is_late: whether the request missed its deadline; None without one.
    """

    is_terminated: BoolArray
    is_truncated: BoolArray
    is_late: BoolArray | None


class Devices(Clockwork[EnvState]):
    """`num_envs` devices from a seed on.

    Attributes:
        latest_latency_s: latency of the latest requests [s], shape (num_envs,).
    """

    def __init__(self, params: EnvParams, num_envs: int, seed: int) -> None:
        self.params = params
        self.latest_latency_s: FloatArray = np.full(num_envs, np.nan)
        self._sums: EpisodeSums = EpisodeSums(params, num_envs)
        super().__init__(num_envs, seed)

    def _initial(self, rng: np.random.Generator) -> EnvState:
        return dynamics.initial(self.params, rng, self.num_envs)

    def observe(self) -> NDArray[np.float32]:
        """Return what the devices see, shape (num_envs, num_fields)."""
        return dynamics.observe(self.params, self.state)

    def step(self, rows: IntArray, *, is_autoreset: bool) -> DevicesStep:
        """Decide the waiting requests.

        Args:
            rows: legal rows of the action table, shape (num_envs,).
            is_autoreset: whether devices whose episode ends begin a new one at once.
        """
        params, problem = self.params, self.params.problem
        made = dynamics.transition(params, self.state, rows, self._moves)
        self._advance(made.state)
        self.latest_latency_s = made.outcome.latency_s
        is_done = made.is_truncated | made.is_terminated if params.has_battery else made.is_truncated
        cost = _row_sum(violations(made.outcome, problem))
        is_late = made.outcome.latency_s > params.deadline_s if params.has_deadline else None
        self._sums.add(made.outcome, cost, is_late)
        ended = self._end(is_done, is_autoreset)
        return DevicesStep(
            observation=self.observe(),
            reward=reward(made.outcome, problem),
            is_terminated=made.is_terminated,
            is_truncated=made.is_truncated,
            costs=costs(made.outcome, problem),
            cost=cost,
            is_late=is_late,
            is_done=is_done,
            ended=ended,
        )


def _row_sum(columns: FloatArray) -> FloatArray:
    """Return the sum over the few columns of (num_envs, num_columns), shape (num_envs,)."""
    total = columns[:, 0].copy() if columns.shape[1] else np.zeros(len(columns))
    for column in columns.T[1:]:
        total += column
    return total
