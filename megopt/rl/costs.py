"""Limits on costs, the costs that an environment reports, and what they came to on average.

A limit d on costs c_t is one of

    per="step"       sum of all c_t / number of steps <= d         (mean over steps, however episodes end)
    per="episode"    mean over whole episodes of sum_t c_t <= d    (undiscounted, up to termination or time limit)

Both are measured as they stand, without discounting, so no limit has to be translated into a threshold on discounted
values, a translation that depends on how episodes end. Episodes that had begun under random warm-up actions or that
have not ended yet count in neither direction for per="episode".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError, ProblemError

LimitPer = Literal["step", "episode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLimits:
    """Upper limits on mean costs.

    Attributes:
        values: limit of each cost, in the unit of that cost, finite; at least one.
        per: what the mean is taken over, "step" or "episode"; see the module.
        scales: size of an excess that counts as 1, > 0, in the unit of `values`; the limits' sizes where None.
    """

    values: tuple[float, ...]
    per: LimitPer = "step"
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values or not np.isfinite(self.values).all():
            message = f"limits = {list(self.values)}; expected one finite number per cost; pass limits=[...]"
            raise ConfigError(message)
        if self.per not in get_args(LimitPer):
            message = f"limit_per = {self.per!r}; expected one of {', '.join(get_args(LimitPer))}; choose one"
            raise ConfigError(message)
        scales = np.ones(len(self.values)) if self.scales is None else np.asarray(self.scales, dtype=np.float64)
        if scales.shape != (len(self.values),) or not (np.isfinite(scales) & (scales > 0.0)).all():
            message = f"cost_scales = {self.scales}; expected {len(self.values)} numbers > 0; pass one per limit"
            raise ConfigError(message)

    def ceilings(self) -> FloatArray:
        """Return the limits, shape (num_limits,)."""
        return np.asarray(self.values, dtype=np.float64)

    def sizes(self) -> FloatArray:
        """Return the excess that counts as 1, shape (num_limits,): `scales`, else |limit|, else 1 where that is 0."""
        if self.scales is not None:
            return np.asarray(self.scales, dtype=np.float64)
        size = np.abs(self.ceilings())
        return np.where(size > 0.0, size, 1.0)


def numbers_of(limits: Any) -> tuple[float, ...]:
    """Return limits as numbers.

    Raises:
        ConfigError: for anything but a sequence of numbers.
    """
    try:
        return tuple(float(limit) for limit in limits)
    except (TypeError, ValueError) as error:
        message = f"limits = {limits!r}; expected a list with one number per cost; pass limits=[...]"
        raise ConfigError(message) from error


def require_array_observations(where: str, env: Any) -> None:
    """Raise ConfigError for an environment whose observations are dictionaries or tuples."""
    space = getattr(env, "observation_space", None)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        message = f"{where}: observations {space}; expected arrays; flatten them by gymnasium's FlattenObservation"
        raise ConfigError(message)


def read_costs(infos: Iterable[Mapping[str, Any]], num_limits: int) -> FloatArray:
    """Return the costs of one step from `info["costs"]`, or from `info["cost"]` where there is one limit.

    Args:
        infos: one mapping per environment.
        num_limits: number of limits, hence of columns of `info["costs"]`.

    Returns:
        Costs, shape (num_envs, num_limits).

    Raises:
        ProblemError: an info holds no costs, costs of another length, or costs that are not finite.
    """
    return np.stack([_row_costs(row, info, num_limits) for row, info in enumerate(infos)])


def _row_costs(row: int, info: Mapping[str, Any], num_limits: int) -> FloatArray:
    key = "costs" if "costs" in info or num_limits > 1 else "cost"
    if key not in info:
        wanted = 'info["costs"]' + (' or info["cost"]' if num_limits == 1 else "")
        message = (
            f"environment {row}: info holds {sorted(info) or 'nothing'}; expected {wanted} for {num_limits} limit(s); "
            "report the costs of every step in info"
        )
        raise ProblemError(message)
    costs = np.asarray(info[key], dtype=np.float64).reshape(-1)
    if costs.shape != (num_limits,):
        message = (
            f'environment {row}: info["{key}"] holds {len(costs)} number(s); expected {num_limits}, one per limit; '
            "pass as many limits as there are costs"
        )
        raise ProblemError(message)
    if not np.isfinite(costs).all():
        message = f'environment {row}: info["{key}"] = {costs.tolist()}; expected finite numbers; mend the environment'
        raise ProblemError(message)
    return costs


def require_finite_rewards(rewards: Any) -> None:
    """Raise ProblemError where a reward is NaN or infinite; rewards of any shape."""
    if not np.isfinite(rewards).all():
        row = int(np.flatnonzero(~np.isfinite(np.ravel(rewards)))[0])
        message = (
            f"environment {row}: its reward is NaN or infinite ({np.ravel(rewards)[row]}); expected finite rewards; "
            "mend the environment"
        )
        raise ProblemError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostMeasure:
    """What costs came to since the last measure.

    Attributes:
        mean: mean cost per step or per episode, shape (num_limits,).
        episode_length: mean steps of the episodes behind `mean`; 1 for means over steps.
    """

    mean: FloatArray
    episode_length: float


class CostMeter:
    """Adds up costs step by step, of all environments side by side.

    Attributes:
        num_steps: counted steps since the last measure, over all environments.
    """

    def __init__(self, num_envs: int, num_limits: int) -> None:
        self.num_steps = 0
        self._sum = np.zeros(num_limits)
        self._running = np.zeros((num_envs, num_limits))
        self._length = np.zeros(num_envs)
        self._is_whole = np.ones(num_envs, dtype=bool)
        self._finished: list[tuple[FloatArray, float]] = []

    def add(self, costs: FloatArray, is_done: BoolArray, *, is_warm_up: bool = False) -> None:
        """Count one step of every environment.

        Args:
            costs: costs of the step, shape (num_envs, num_limits).
            is_done: whether the episode ended with this step, shape (num_envs,).
            is_warm_up: whether the actions came from no policy; such steps and their episodes are left out.
        """
        if not is_warm_up:
            self.num_steps += len(costs)
            self._sum += costs.sum(axis=0)
        self._is_whole &= not is_warm_up
        self._running += costs
        self._length += 1.0
        for row in np.flatnonzero(is_done):
            if self._is_whole[row]:
                self._finished.append((self._running[row].copy(), float(self._length[row])))
            self._running[row], self._length[row], self._is_whole[row] = 0.0, 0.0, True

    def take(self, per: LimitPer) -> CostMeasure | None:
        """Return the mean since the last measure and begin the next; None where nothing has been counted yet."""
        if per == "step":
            measure = CostMeasure(mean=self._sum / self.num_steps, episode_length=1.0) if self.num_steps else None
        else:
            measure = self._episodes() if self._finished else None
        if measure is not None:
            self.num_steps, self._sum, self._finished = 0, np.zeros_like(self._sum), []
        return measure

    def _episodes(self) -> CostMeasure:
        sums, lengths = zip(*self._finished, strict=True)
        return CostMeasure(mean=np.mean(sums, axis=0), episode_length=float(np.mean(lengths)))
