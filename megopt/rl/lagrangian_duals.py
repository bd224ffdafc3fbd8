"""The dual side of a Lagrangian algorithm: measured costs in, multipliers out, and the costs that its critics learn.

Critics learn the scaled cost

    per="step"       (c_t - d) / scale                      its sum over an episode is <= 0 in the mean iff the limit
                                                            is kept, also where the policy decides how long it lasts
    per="episode"    c_t / scale,  scale = size / length    length: mean steps per episode at the first measure

so that the multipliers of both kinds are of one size: rewards per step over relative excess. They are counted in units
of a reward's size, which is told, or measured as the standard deviation of the rewards before the first update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_within
from megopt.rl import pid
from megopt.rl.costs import CostLimits, CostMeasure, CostMeter, LimitPer


class Duals:
    """Multipliers of several limits; plain data, saved and restored with the algorithm that holds it.

    Attributes:
        limits: the limits.
        gains: gains of the multipliers' controller.
        state: memory of the controller; its multipliers are the current ones.
        measure: latest measured costs, None before the first.
        reward_scale: size of a reward; None until it is measured.
    """

    def __init__(self, limits: CostLimits, gains: pid.PidGains, reward_scale: float | None = 1.0) -> None:
        self.limits = limits
        self.gains = gains
        self.reward_scale = reward_scale
        self.state = pid.initial(self.num_limits)
        self.measure: CostMeasure | None = None
        self._episode_length: float | None = None
        self._meter = CostMeter(1, self.num_limits)

    @property
    def num_limits(self) -> int:
        """Number of limits."""
        return len(self.limits.values)

    @property
    def num_steps(self) -> int:
        """Steps counted since the last update, over all environments."""
        return self._meter.num_steps

    @property
    def multipliers(self) -> FloatArray:
        """Current multipliers, >= 0, shape (num_limits,)."""
        return self.state.multipliers * (1.0 if self.reward_scale is None else self.reward_scale)

    def measure_rewards(self, rewards: NDArray[Any]) -> None:
        """Take the size of a reward from some rewards, of any shape, where it is not known yet."""
        if self.reward_scale is None:
            self.reward_scale = float(np.std(rewards, dtype=np.float64)) or 1.0

    def restart(self, num_envs: int) -> None:
        """Forget costs that were counted and not yet measured: all environments begin new episodes."""
        self._meter = CostMeter(num_envs, self.num_limits)

    def count(self, costs: FloatArray, is_done: BoolArray, *, is_warm_up: bool = False) -> None:
        """Count one step of every environment; see `CostMeter.add`."""
        self._meter.add(costs, is_done, is_warm_up=is_warm_up)

    def update(self) -> bool:
        """Measure the costs counted since the last update and move the multipliers; False where none were counted."""
        measure = self._meter.take(self.limits.per)
        if measure is None:
            return False
        self.measure = measure
        if self._episode_length is None:
            self._episode_length = measure.episode_length
        errors = (measure.mean - self.limits.ceilings()) / self.limits.sizes()
        self.state = pid.update(self.state, errors, self.gains)
        return True

    def offset_and_scale(self) -> tuple[FloatArray, FloatArray]:
        """Return o and s of the scaled cost (c - o) / s that critics learn, each of shape (num_limits,)."""
        offset = self.limits.ceilings() if self.limits.per == "step" else np.zeros(self.num_limits)
        return offset, self.limits.sizes() / (self._episode_length or 1.0)

    def log_rows(self) -> dict[str, float]:
        """Return multipliers, measured costs and limits under the names that go to the log."""
        rows = {}
        for index, (multiplier, limit) in enumerate(zip(self.multipliers, self.limits.values, strict=True)):
            rows[f"lagrange/multiplier_{index}"] = float(multiplier)
            rows[f"lagrange/limit_{index}"] = float(limit)
            if self.measure is not None:
                rows[f"lagrange/cost_{index}"] = float(self.measure.mean[index])
        return rows


def new_duals(
    limits: Sequence[float] | None,
    limit_per: LimitPer,
    cost_scales: Sequence[float] | None,
    gains: pid.PidGains | Mapping[str, float] | None,
    reward_scale: float | None = 1.0,
) -> Duals:
    """Return the duals that a constructor's arguments ask for.

    Raises:
        ConfigError: no limits, limits and scales that do not fit, an unknown gain, or a scale of rewards not above 0.
    """
    if limits is None or np.ndim(limits) != 1:
        message = f"limits = {limits}; expected a list with one number per cost; pass limits=[...]"
        raise ConfigError(message)
    values = tuple(float(limit) for limit in limits)
    scales = None if cost_scales is None else tuple(float(scale) for scale in cost_scales)
    if reward_scale is not None:
        require_within("multipliers", 1e-12, 1e12, reward_scale=reward_scale)
    return Duals(CostLimits(values=values, per=limit_per, scales=scales), _gains_of(gains), reward_scale)


def _gains_of(gains: pid.PidGains | Mapping[str, float] | None) -> pid.PidGains:
    if isinstance(gains, pid.PidGains):
        return gains
    known = [field.name for field in fields(pid.PidGains)]
    strange = sorted(set(gains or {}) - set(known))
    if strange:
        message = f"gains: {', '.join(strange)}; expected some of {', '.join(known)}; change gains"
        raise ConfigError(message)
    return pid.PidGains(**dict(gains or {}))
