"""Lagrange multipliers as the output of a PID controller: one per limit, fed with the measured excess over the limit.

    e     = clip((J - d) / scale, -error_cap, error_cap)    relative excess of the measured cost J over the limit d
    s    <- smoothing s + (1 - smoothing) e                (the first s is the first e)
    I    <- clip(I + integral e, 0, ceiling)
    lambda = clip(proportional s + I + derivative max(0, s - s_before), 0, ceiling)

The integral alone is the usual gradient ascent on the dual, which overshoots and swings; the other two terms damp it.
I holds the integral term itself, gain included, and stays within the range that lambda can have. So nothing winds up:
however long a limit was out of reach or slack, I answers the first excess of the other sign at once. Without the cap
on e a cost of many times its limit would lift lambda in one update to where it takes hundreds to come down from.
Source: Stooke, Achiam and Abbeel, ICML 2020, arXiv:2007.03964, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError, ProblemError


@dataclass(frozen=True, slots=True, kw_only=True)
class PidGains:
    """Gains of the controller.

    Multipliers are rewards per step over relative excess, so gains should grow in proportion to the rewards; the
    defaults suit rewards of about 1. Where costs swing about their limit, lower all gains or update less often.

    Attributes:
        proportional: lambda per unit of relative excess, >= 0.
        integral: growth of lambda per update and unit of relative excess, >= 0.
        derivative: lambda per rise of the relative excess between two updates, >= 0.
        smoothing: weight of the past in the proportional and derivative terms, in [0, 1); 0 takes the latest measure.
        ceiling: largest multiplier, > 0.
        error_cap: largest relative excess, of either sign, that one update takes in, > 0.
    """

    proportional: float = 0.25
    integral: float = 0.05
    derivative: float = 0.1
    smoothing: float = 0.5
    ceiling: float = 100.0
    error_cap: float = 1.0

    def __post_init__(self) -> None:
        for name in ("proportional", "integral", "derivative"):
            _require(name, getattr(self, name), getattr(self, name) >= 0.0, "a finite number >= 0")
        for name in ("ceiling", "error_cap"):
            _require(name, getattr(self, name), getattr(self, name) > 0.0, "a finite number > 0")
        _require("smoothing", self.smoothing, 0.0 <= self.smoothing < 1.0, "a number in [0, 1)")
        _require("integral", self.integral, self.proportional + self.integral > 0.0, "> 0 where proportional is 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PidState:
    """Memory of the controller after `num_updates` updates; all arrays have shape (num_limits,).

    Attributes:
        multipliers: lambda, in [0, ceiling].
        integral: integral term, gain included, in [0, ceiling].
        smoothed: smoothed relative excess.
        num_updates: updates so far.
    """

    multipliers: FloatArray
    integral: FloatArray
    smoothed: FloatArray
    num_updates: int = 0


def initial(num_limits: int, multiplier: float = 0.0) -> PidState:
    """Return the state before the first update.

    Args:
        num_limits: number of limits, >= 1.
        multiplier: first value of every multiplier and of its integral term, >= 0.
    """
    start = np.full(num_limits, float(multiplier))
    return PidState(multipliers=start, integral=start.copy(), smoothed=np.zeros(num_limits))


def update(state: PidState, errors: FloatArray, gains: PidGains) -> PidState:
    """Return the state after one measurement; see the module for the formula.

    Args:
        state: state before.
        errors: relative excess over each limit, (J - d) / scale, shape (num_limits,).
        gains: gains and bounds.

    Raises:
        ProblemError: an excess is not finite, or there are more or fewer than multipliers.
    """
    errors = np.asarray(errors, dtype=np.float64)
    if errors.shape != state.multipliers.shape or not np.isfinite(errors).all():
        message = (
            f"pid.update: excesses {errors.tolist()}; expected {len(state.multipliers)} finite numbers; "
            "look for NaN or infinite costs of the environment"
        )
        raise ProblemError(message)
    errors = np.clip(errors, -gains.error_cap, gains.error_cap)
    past = state.smoothed if state.num_updates else errors
    smoothed = gains.smoothing * past + (1.0 - gains.smoothing) * errors
    integral = np.clip(state.integral + gains.integral * errors, 0.0, gains.ceiling)
    raw = gains.proportional * smoothed + integral + gains.derivative * np.maximum(smoothed - past, 0.0)
    return replace(
        state,
        multipliers=np.clip(raw, 0.0, gains.ceiling),
        integral=integral,
        smoothed=smoothed,
        num_updates=state.num_updates + 1,
    )


def _require(name: str, value: float, is_right: bool, expected: str) -> None:
    if not (np.isfinite(value) and is_right):
        message = f"PidGains: {name} = {value}; expected {expected}; change this gain"
        raise ConfigError(message)
