"""What a search is: dimensions, objectives, limits and how to choose; checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megopt.errors import ConfigError
from megopt.ranges import require_whole
from megopt.sweeps.axes import Axis
from megopt.sweeps.grid import Planner
from megopt.sweeps.measured import OBJECTIVES
from megopt.sweeps.search_space import Searched, described

SAMPLERS = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "nsga2": "NSGAIISampler",
    "nsga3": "NSGAIIISampler",
    "random": "RandomSampler",
}
"""Samplers of Optuna by the names that `sampler` takes."""
DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched.

    Attributes:
        planner: makes the run of a point.
        space: the dimensions.
        objectives: minimize or maximize, by quantity of `megopt.sweeps.measured.OBJECTIVES`.
        limits: largest mean that counts as feasible, by quantity.
        sampler: a key of `SAMPLERS`.
        num_trials: trials in all, those of earlier commands included.
        batch: trials asked for at once; the result depends on it, unlike on the number of workers.
        seed: of the sampler.
    """

    planner: Planner
    space: Sequence[Searched]
    objectives: Mapping[str, str]
    limits: Mapping[str, float]
    sampler: str = "tpe"
    num_trials: int = 100
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("search", 1, num_trials=self.num_trials, batch=self.batch)
        require_whole("search", 0, seed=self.seed)
        _require_one_of("sampler", [self.sampler], SAMPLERS)
        _require_one_of("objectives", list(self.objectives), OBJECTIVES)
        _require_one_of("limits", list(self.limits), OBJECTIVES)
        for name, direction in self.objectives.items():
            _require_one_of(f"objectives.{name}", [direction], DIRECTIONS)
        for name, bound in self.limits.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
                message = f"limits.{name} is {bound!r}; expected a number: the largest mean that is feasible"
                raise ConfigError(message)
        if not self.objectives:
            message = f"objectives is empty; expected some of {', '.join(OBJECTIVES)} with minimize or maximize"
            raise ConfigError(message)

    def require_points(self) -> None:
        """Raise unless there is a run for each choice and for both ends of each range.

        Raises:
            ConfigError: naming the key that the configuration does not have.
            HydraException: naming the choices of a group that has no such one.
        """
        ends = {one.key: list(one.values) if isinstance(one, Axis) else [one.low, one.high] for one in self.space}
        for one in self.space:
            for value in ends[one.key]:
                self.planner.run_at([(other, value if other is one else ends[other.key][0]) for other in self.space])

    def plan(self) -> dict[str, Any]:
        """Return what tells two searches apart, as plain data."""
        base = self.planner.config_of_all()
        return {
            "space": described(self.space),
            "objectives": dict(self.objectives),
            "limits": dict(self.limits),
            "sampler": self.sampler,
            "batch": self.batch,
            "seed": self.seed,
            "call": self.planner.call,
            "configuration": {key: value for key, value in base.items() if key not in described(self.space)},
        }


def _require_one_of(where: str, came: Sequence[object], expected: Sequence[str] | Mapping[str, object]) -> None:
    for name in came:
        if name not in expected:
            message = f"{where}: {name!r}; expected one of {', '.join(expected)}"
            raise ConfigError(message)
