"""From a limit on costs to a threshold on discounted action values, as the episodes end and as the costs measure.

The critic of cost i sums gamma^k c_i over what is left of an episode. With c_i at its limit on average per step, its
mean over the states of the episodes is limit x H, where H is the mean over the states of

    h = (1 - gamma^(T - t)) / (1 - gamma)    state t of an episode that ended after T steps
    h = 1 / (1 - gamma)                      any state of an episode that a time limit cut: the critic bootstraps there

Errors of the critic, costs that are spread unevenly and states from older policies shift Q by an unknown amount. It is
measured in two parts, with Q(s_t, a_t) of the actions taken, Q(s_t, pi) of the acting policy there, and Q(s, slow) of
the slow policy, which the threshold is for, at replayed states s:

    error     mean Q(s_t, a_t) - measured cost x H      what the critic is off by, along the policy's own path
    drift     mean Q(s, slow) - mean Q(s_t, pi)         what the slow policy in replay is dearer than the one that acts

    threshold = limit H + error + drift

A policy at the threshold then has the measured mean cost limit, whatever the shift is. For a critic that is right the
terms of the error telescope along the path, whatever the environment happens to draw. Where an observation does not
tell all (how far away a device is, say) they do not: a dear episode is dearer than its critic in every step, and luck
stays in. Both parts therefore look back on a share of all steps; a policy that has changed since is in both terms.

The actor is not quite at the threshold, though: it is fitted to the E-step's q, and where its class cannot follow (a
Gaussian, at a step of the cost) it comes to rest above or below. So a slow integral of the distance from the threshold
to mean Q(s, slow), over H, is added, over about two windows, bounded, and only while the limit is felt: it does not
wind up behind a slack limit. Felt means: in a fair share of the batches of a window. Asked batch by batch, the integral
would follow the batches that happen to be dear, in which limits are felt, and not the cheap ones, and drift down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within
from megopt.rl.costs import CostLimits

_INTEGRAL_GAIN = 0.5
"""Share of a lasting distance from a limit that the integral takes up per window."""
_INTEGRAL_BOUND = 0.1
"""Largest integral, as a share of the sizes of limit and measured cost together."""
_LEAST_FELT = 0.1
"""Share of the batches of a window that must feel a limit for its integral to move."""
_LOOK_BACK = 0.5
"""Share of all measured steps that running means look back on, once that is more than a window."""


def mean_horizon(lengths: FloatArray, is_terminated: BoolArray, gamma: float) -> float:
    """Return H, the mean discounted number of steps that a critic counts from the states of some episodes.

    Args:
        lengths: steps of each episode, shape (num_episodes,).
        is_terminated: whether it ended, in contrast to a time limit, shape (num_episodes,).
        gamma: discount per step, in [0, 1].

    Raises:
        ConfigError: for gamma = 1 with episodes that are cut, where the critic's sum has no end.
    """
    steps = np.asarray(lengths, dtype=np.float64)
    if gamma == 1.0:
        if not np.all(is_terminated):
            message = "gamma = 1 with episodes cut by a time limit; expected gamma < 1, or episodes that terminate"
            raise ConfigError(message)
        return float(np.sum(steps * (steps + 1.0) / 2.0) / np.sum(steps))
    # sum over t of gamma^(T - t), t = 0..T-1
    lost = np.where(is_terminated, gamma * (1.0 - gamma**steps) / (1.0 - gamma), 0.0)
    return float(np.sum(steps - lost) / ((1.0 - gamma) * np.sum(steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticMeans:
    """Mean Q of each cost by the slow critics, shape (num_limits,) each.

    Attributes:
        taken: of the steps since the last update: at their states, of the actions that were taken.
        visited: at the same states, of the policy that acts.
        replayed: at replayed states, of the slow policy that the E-step begins from.
    """

    taken: FloatArray
    visited: FloatArray
    replayed: FloatArray


class Thresholds:
    """Thresholds of all limits; learns lengths of episodes and the shift of the critics while the agent acts.

    Attributes:
        measured: running mean cost per step of the acting policy, shape (num_limits,); NaN before the first step.
        values: running mean Q of each cost at the same steps, shape (num_limits,).
        drift: running mean of how much dearer the slow policy in replay is, shape (num_limits,).
        horizon: H over the latest episodes.
        episode_length: mean steps of the latest episodes; NaN before the first has ended.
    """

    def __init__(
        self,
        limits: CostLimits | None,
        gamma: float,
        num_envs: int,
        window: int = 4000,
        num_episodes: int = 100,
        margin: float = 0.0,
    ) -> None:
        """Begin without any measurement.

        Args:
            limits: the limits; None for none.
            gamma: discount per step.
            num_envs: environments side by side.
            window: steps, over all environments, that running means look back on at least.
            num_episodes: latest episodes that tell how episodes end.
            margin: share of a limit's size that is held back from it.
        """
        require_whole("thresholds", 1, window=window, num_episodes=num_episodes)
        require_within("thresholds", 0.0, 1.0, gamma=gamma)
        ceilings = np.zeros(0) if limits is None else limits.ceilings()
        self._ceilings = ceilings - margin * np.abs(ceilings)
        self._is_per_episode = limits is not None and limits.per == "episode"
        self._gamma, self._window, self._num_episodes = gamma, window, num_episodes
        self._age = np.zeros(num_envs)
        self._ends: list[tuple[float, bool]] = []
        self._pending, self._num_pending = np.zeros(len(self._ceilings)), 0
        self._num_measured = self._num_skipped = 0
        self.measured = np.full(len(self._ceilings), np.nan)
        self.values = np.zeros(len(self._ceilings))
        self.drift = np.zeros(len(self._ceilings))
        self._integral = np.zeros(len(self._ceilings))
        self._felt = np.ones(len(self._ceilings))
        self.horizon = 1.0 / (1.0 - gamma) if gamma < 1.0 else np.nan
        self.episode_length = np.nan

    def observe(
        self, costs: FloatArray, is_terminated: BoolArray, is_truncated: BoolArray, *, is_warm_up: bool
    ) -> None:
        """Take note of one step of every environment.

        Args:
            costs: shape (num_envs, num_limits).
            is_terminated: whether the episode ended, shape (num_envs,).
            is_truncated: whether it was cut, shape (num_envs,).
            is_warm_up: whether the actions came from no policy; their costs do not count.
        """
        self._age += 1.0
        if not is_warm_up:
            self._pending = self._pending + costs.sum(axis=0)
            self._num_pending += len(costs)
        rows = np.flatnonzero(is_terminated | is_truncated)
        if len(rows):
            self._ends += [(float(self._age[row]), bool(is_terminated[row])) for row in rows]
            self._ends = self._ends[-self._num_episodes :]
            self._age[rows] = 0.0
            lengths, ended = (np.array(column) for column in zip(*self._ends, strict=True))
            self.horizon = mean_horizon(lengths, ended, self._gamma)
            self.episode_length = float(np.mean(lengths))

    @property
    def num_pending(self) -> int:
        """Steps observed since the last update, over all environments."""
        return self._num_pending

    def update(self, means: CriticMeans, is_felt: BoolArray) -> None:
        """Take note of the updates since the last call.

        Costs and values enter with the same weights, so that both look back equally far. The first window is left
        out of the correction: a critic that has just begun to learn says nothing about its shift.

        Args:
            means: what the critics say.
            is_felt: whether the limit had a multiplier above 0, shape (num_limits,).
        """
        if not self._num_pending:
            return
        num_new, cost = self._num_pending, self._pending / self._num_pending
        self._pending, self._num_pending = np.zeros(len(self._ceilings)), 0
        if self._num_skipped < self._window:
            self._num_skipped += num_new
            self._num_measured = 0
        self._num_measured += num_new
        rate = num_new / min(self._num_measured, max(self._window, _LOOK_BACK * self._num_measured))
        self.measured = _moved(self.measured, cost, rate)
        self.values = _moved(self.values, means.taken, rate)
        self.drift = _moved(self.drift, means.replayed - means.visited, rate)
        if self.is_corrected and np.all(np.isfinite(self.limits_per_step)):
            self._integrate(means.replayed, is_felt, min(1.0, num_new / self._window))

    def _integrate(self, replayed: FloatArray, is_felt: BoolArray, share: float) -> None:
        """Move the integral by a share of a window; behind a limit that is not felt it fades."""
        self._felt = _moved(self._felt, is_felt.astype(np.float64), share)
        missing = (self._corrected() - replayed) / self.horizon
        faded = self._integral * (1.0 - share)
        moved = np.where(self._felt >= _LEAST_FELT, self._integral + _INTEGRAL_GAIN * share * missing, faded)
        bound = _INTEGRAL_BOUND * (np.abs(self.limits_per_step) + np.abs(self.measured))
        self._integral = np.clip(moved, -bound, bound)

    def _corrected(self) -> FloatArray:
        """Return limit H + error + drift."""
        return np.asarray((self.limits_per_step - self.measured) * self.horizon + self.values + self.drift)

    @property
    def is_corrected(self) -> bool:
        """Whether the measured shift is part of the thresholds."""
        return self._num_skipped >= self._window and self._num_measured >= self._window // 2

    @property
    def limits_per_step(self) -> FloatArray:
        """Limits on the mean cost per step, shape (num_limits,); NaN while episodes of unknown length are asked for."""
        return self._ceilings / self.episode_length if self._is_per_episode else self._ceilings

    def current(self) -> FloatArray:
        """Return the thresholds on mean Q, shape (num_limits,); inf until the first episode for limits per episode."""
        base = self.limits_per_step * self.horizon
        if self.is_corrected:
            base = self._corrected() + self._integral * self.horizon
        return np.where(np.isnan(base), np.inf, base)

    def measured_cost(self) -> FloatArray:
        """Return the running mean cost in the unit of the limits, per step or per episode, shape (num_limits,)."""
        return self.measured * (self.episode_length if self._is_per_episode else 1.0)


def _moved(mean: FloatArray, value: FloatArray, rate: float) -> FloatArray:
    """Return a running mean after one more value; at the rate 1 the value itself, whatever the mean was."""
    return value if rate >= 1.0 else mean + rate * (value - mean)
