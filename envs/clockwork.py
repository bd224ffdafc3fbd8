"""What moves a vector environment from step to step: its state, its randomness, and the sums of its episodes.

There are two sources of randomness. Channels and arrivals move with a generator that draws for every row in every step.
New episodes start from a generator that is made afresh from the seed and the number of steps so far, and draws for
every row too. So what a row meets depends on the seed, its index and its own actions: no neighbour's reset changes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.episode import EpisodeReport


class Renewable(Protocol):
    """A state some rows of which can begin anew."""

    def where(self, is_fresh: BoolArray, fresh: Self) -> Self:
        """Return `fresh` in the rows where `is_fresh` (num_envs,) and this state in the others."""


class Sums(Protocol):
    """Running sums of the episode of each row."""

    def clear(self, is_cleared: BoolArray) -> None:
        """Begin anew in the rows `is_cleared` (num_envs,)."""

    def report(self, state: Any) -> EpisodeReport:
        """Return the report of each row's episode so far."""


State = TypeVar("State", bound=Renewable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What is known of episodes that ended in a step; meaningful in the rows whose episode ended.

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
        reward: sum of the rewards of the step's requests; 0 without one.
        costs: sum over the step's requests, one column per limit, shape (num_envs, num_limits).
        cost: sum of the violations over limits and requests.
        is_done: whether the episode ended.
        ended: the episodes that ended; None where none did.
    """

    observation: NDArray[np.float32]
    reward: FloatArray
    costs: FloatArray
    cost: FloatArray
    is_done: BoolArray
    ended: Ended | None


class Clockwork(ABC, Generic[State]):
    """`num_envs` rows from a seed on.

    Attributes:
        num_envs: rows.
        state: state in which the waiting requests are.
        decided: state in which the latest requests were decided.
        is_over: rows whose episode has ended and that were not reset since, shape (num_envs,).
    """

    _sums: Sums

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs
        self.is_over: BoolArray = np.zeros(num_envs, dtype=bool)
        self._seed = seed
        self._clock = 0
        self._attempts: IntArray = np.zeros(num_envs, dtype=np.int64)
        self._moves = self._generator(0)
        self.state = self.decided = self._fresh(0)
        self._attempts += 1

    @property
    def has_decided(self) -> bool:
        """Whether a step was taken."""
        return self._clock > 0

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))

    def _fresh(self, attempt: int) -> State:
        """Return first states for all rows: those of this clock and attempt."""
        return self._initial(self._generator(1, self._clock, attempt))

    @abstractmethod
    def _initial(self, rng: np.random.Generator) -> State:
        """Return first states for all rows, drawn from `rng`."""

    @abstractmethod
    def observe(self) -> NDArray[np.float32]:
        """Return what the rows show, shape (num_envs, num_fields)."""

    def reset(self, is_reset: BoolArray) -> None:
        """Begin new episodes in the rows `is_reset` (num_envs,)."""
        for attempt in np.unique(self._attempts[is_reset]).tolist():  # a row's draws do not depend on others' resets
            self.state = self.state.where(is_reset & (self._attempts == attempt), self._fresh(attempt))
        self._attempts += is_reset
        self.is_over = self.is_over & ~is_reset
        self._sums.clear(is_reset)

    def _advance(self, following: State) -> None:
        """Take the state before the next step; episodes that begin from here on have draws of their own."""
        self.decided, self.state = self.state, following
        self._clock += 1
        self._attempts.fill(0)

    def _end(self, is_done: BoolArray, is_autoreset: bool) -> Ended | None:
        """Return what ended, None where nothing did, and begin anew where that is wanted."""
        if not np.any(is_done):
            return None
        ended = Ended(observation=self.observe(), report=self._sums.report(self.state))
        if is_autoreset:
            self.reset(is_done)
        else:
            self.is_over = self.is_over | is_done
        return ended
