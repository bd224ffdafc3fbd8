"""What frames look back on: the latest steps of each row's episode, and the running means over all of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.problem import Problem, ceilings
from megopt.tables.schema import METRIC_SENSES

MOMENTS = 64
"""Steps that a frame can look back on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What one step showed.

    Attributes:
        totals: objective and limited quantities, summed over the step's requests, shape (num_envs, 1 + num_limits).
        num_requests: how many these were [1], shape (num_envs,).
    """

    totals: FloatArray
    num_requests: FloatArray


Kind = TypeVar("Kind", bound=Moment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past(Generic[Kind]):
    """The latest steps of one row's episode, oldest first.

    Attributes:
        moments: the steps, of all rows.
        means: means of the totals per request, over the episode up to each of the steps, (num_moments, 1 + num_limits).
        num_steps: steps of the episode so far [1].
        env: the row.
    """

    moments: list[Kind]
    means: FloatArray
    num_steps: int
    env: int

    @property
    def per_request(self) -> FloatArray:
        """Totals of each step over its requests, shape (num_moments, 1 + num_limits); NaN where there was none."""
        totals = np.array([moment.totals[self.env] for moment in self.moments]).reshape(self.means.shape)
        counts = np.array([moment.num_requests[self.env] for moment in self.moments])[:, np.newaxis]
        return np.asarray(np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0))


class History(Generic[Kind]):
    """The latest steps of every row. A row that ended and was reset in the same step is shown until its next step."""

    def __init__(self, num_envs: int, num_limits: int) -> None:
        self._kept: deque[tuple[Kind, FloatArray]] = deque(maxlen=MOMENTS)
        self._num_steps: IntArray = np.zeros(num_envs, dtype=np.int64)
        self._is_over: BoolArray = np.zeros(num_envs, dtype=bool)
        self._totals: FloatArray = np.zeros((num_envs, 1 + num_limits))
        self._counts: FloatArray = np.zeros(num_envs)

    def begin(self, is_begun: BoolArray) -> None:
        """Forget the past of the rows `is_begun` (num_envs,)."""
        for sums in (self._num_steps, self._is_over, self._totals, self._counts):
            sums[is_begun] = 0

    def add(self, moment: Kind, is_done: BoolArray) -> None:
        """Add a step, and note in which rows (num_envs,) it was the last of the episode."""
        self.begin(self._is_over)
        self._num_steps += 1
        self._is_over = is_done.copy()
        self._totals += moment.totals
        self._counts += moment.num_requests
        counts = self._counts[:, np.newaxis]
        means = np.divide(self._totals, counts, out=np.full_like(self._totals, np.nan), where=counts > 0)
        self._kept.append((moment, means))

    def of(self, env: int) -> Past[Kind]:
        """Return the past of one row."""
        num_steps = int(self._num_steps[env])
        shown = list(self._kept)[max(len(self._kept) - num_steps, 0) :]
        means = np.array([mean[env] for _, mean in shown]).reshape(-1, self._totals.shape[1])
        return Past(moments=[moment for moment, _ in shown], means=means, num_steps=num_steps, env=env)


def shown_totals(rewards: FloatArray, costs: FloatArray, problem: Problem) -> FloatArray:
    """Return objective and limited quantities as people read them, shape (num_envs, 1 + num_limits).

    Args:
        rewards: sum of the rewards of a step's requests, shape (num_envs,).
        costs: sum of their costs, shape (num_envs, num_limits).
        problem: says where a sign was turned.
    """
    return np.column_stack([-rewards, costs]) * _signs(problem)


def shown_bounds(problem: Problem) -> FloatArray:
    """Return the limits beside `shown_totals`, shape (1 + num_limits,); NaN for the objective."""
    return np.concatenate([[np.nan], ceilings(problem)]) * _signs(problem)


def _signs(problem: Problem) -> FloatArray:
    quantities = [problem.objective, *(limit.quantity for limit in problem.limits)]
    sense = METRIC_SENSES.get(problem.metric, 1)
    return np.array([-sense if quantity == "quality" else 1.0 for quantity in quantities])
