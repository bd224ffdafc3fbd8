"""The devices of a vector environment: their state, their randomness, and the sums of their episodes.

There are two sources of randomness. The channel moves with a generator that draws for every device in every step. New
episodes start from a generator that is made afresh from the seed and the number of steps so far, and draws for every
device too. So what a device meets depends on the seed, its index and its own actions: no neighbour's reset changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import dynamics
from megopt.envs.dynamics import EnvParams, EnvState
from megopt.envs.episode import EpisodeReport, EpisodeSums
from megopt.problem import costs, reward, violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What is known of episodes that ended in a step; meaningful where `Step.is_done`.

    Attributes:
        observation: last observation of each episode, shape (num_envs, num_fields).
        report: what each episode came to.
    """

    observation: NDArray[np.float32]
    report: EpisodeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step gave; fields of shape (num_envs,) unless stated.

    Attributes:
        observation: what is seen next, shape (num_envs, num_fields); of a new episode where one began.
        reward: reward of the request.
        is_terminated: whether the battery is used up.
        is_truncated: whether the episode has had all its requests.
        costs: one column per limit, shape (num_envs, num_limits).
        cost: sum of the violations.
        is_late: whether the request missed its deadline; None without one.
        is_done: whether the episode ended.
        ended: the episodes that ended; None where none did.
    """

    observation: NDArray[np.float32]
    reward: FloatArray
    is_terminated: BoolArray
    is_truncated: BoolArray
    costs: FloatArray
    cost: FloatArray
    is_late: BoolArray | None
    is_done: BoolArray
    ended: Ended | None


class Devices:
    """`num_envs` devices from a seed on.

    Attributes:
        state: state in which the waiting requests are.
        decided: state in which the latest requests were decided.
        latest_latency_s: latency of the latest requests [s], shape (num_envs,).
        is_over: devices whose episode has ended and that were not reset since, shape (num_envs,).
    """

    def __init__(self, params: EnvParams, num_envs: int, seed: int) -> None:
        self.params = params
        self.num_envs = num_envs
        self.is_over: BoolArray = np.zeros(num_envs, dtype=bool)
        self.latest_latency_s: FloatArray = np.full(num_envs, np.nan)
        self._seed = seed
        self._clock = 0
        self._attempt = 0
        self._moves = self._generator(0)
        self.state = self.decided = self._fresh()
        self._sums = EpisodeSums(params, num_envs)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def _fresh(self) -> EnvState:
        """Return first states for all devices: those of this clock and attempt."""
        fresh = dynamics.initial(self.params, self._generator(1, self._clock, self._attempt), self.num_envs)
        self._attempt += 1
        return fresh

    def reset(self, is_reset: BoolArray) -> None:
        """Begin new episodes in the devices `is_reset` (num_envs,)."""
        self.state = self.state.where(is_reset, self._fresh())
        self.is_over = self.is_over & ~is_reset
        self._sums.clear(is_reset)

    def observe(self) -> NDArray[np.float32]:
        """Return what the devices see, shape (num_envs, num_fields)."""
        return dynamics.observe(self.params, self.state)

    def step(self, rows: IntArray, *, is_autoreset: bool) -> Step:
        """Decide the waiting requests.

        Args:
            rows: legal rows of the action table, shape (num_envs,).
            is_autoreset: whether devices whose episode ends begin a new one at once.
        """
        self._clock, self._attempt = self._clock + 1, 0
        params, problem = self.params, self.params.problem
        made = dynamics.transition(params, self.state, rows, self._moves)
        self.decided, self.state, self.latest_latency_s = self.state, made.state, made.outcome.latency_s
        is_done = made.is_truncated | made.is_terminated if params.has_battery else made.is_truncated
        cost = _row_sum(violations(made.outcome, problem))
        is_late = made.outcome.latency_s > params.deadline_s if params.has_deadline else None
        self._sums.add(made.outcome, cost, is_late)
        ended = self._end(is_done, is_autoreset) if np.any(is_done) else None
        return Step(
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

    def _end(self, is_done: BoolArray, is_autoreset: bool) -> Ended:
        """Return what ended, and begin anew where that is wanted."""
        ended = Ended(observation=self.observe(), report=self._sums.report(self.state))
        if is_autoreset:
            self.reset(is_done)
        else:
            self.is_over = self.is_over | is_done
        return ended


def _row_sum(columns: FloatArray) -> FloatArray:
    """Return the sum over the few columns of (num_envs, num_columns), shape (num_envs,)."""
    total = columns[:, 0].copy() if columns.shape[1] else np.zeros(len(columns))
    for column in columns.T[1:]:
        total += column
    return total
