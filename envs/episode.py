"""What an episode came to: means of latency, energies, quality and costs, and whether the limits were kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.dynamics import EnvState
from megopt.envs.parameters import EnvParams
from megopt.problem import ceilings, costs, reward
from megopt.system.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeReport:
    """Means over the requests of one episode per row; fields of shape (num_envs,) or (num_envs, num_limits).

    Attributes:
        num_requests: requests decided in the episode [1]; with none, the means are 0.
        reward: mean reward per request [unit of the objective].
        latency_s: mean latency [s].
        device_energy_j: mean energy of the device [J]; NaN where not measured.
        edge_energy_j: mean energy of the edge [J]; NaN where not measured.
        energy_j: mean energy of both [J]; NaN where not measured.
        quality: mean of the problem's metric; NaN where it has none.
        costs: mean cost per limit and request.
        is_kept: whether the mean cost keeps each limit.
        violation_rate: share of requests that broke a limit [1].
        late_rate: share of requests that missed the deadline [1].
    """

    num_requests: IntArray
    reward: FloatArray
    latency_s: FloatArray
    device_energy_j: FloatArray
    edge_energy_j: FloatArray
    energy_j: FloatArray
    quality: FloatArray
    costs: FloatArray
    is_kept: BoolArray
    violation_rate: FloatArray
    late_rate: FloatArray


class RunningSums:
    """Running sums and counts over the requests of each row's episode."""

    def __init__(self, params: EnvParams, num_envs: int, *, summed: Iterable[str] = (), counted: Iterable[str] = ()):
        """Begin with 0.

        Args:
            params: the environment.
            num_envs: rows.
            summed: what is summed beside the measured columns of an outcome.
            counted: what is counted beside requests that broke a limit, and late ones.
        """
        self._params = params
        self._sums = {name: np.zeros(num_envs) for name in (*params.terms.measured, *summed)}
        self._counts = {name: np.zeros(num_envs, dtype=np.int32) for name in ("violating", "late", *counted)}

    def clear(self, is_cleared: BoolArray) -> None:
        """Begin anew in the rows `is_cleared` (num_envs,)."""
        totals: list[NDArray[Any]] = [*self._sums.values(), *self._counts.values()]
        for total in totals:
            total[is_cleared] = 0

    def _means(self, num_requests: IntArray) -> dict[str, Any]:
        """Return the fields of an `EpisodeReport`; costs and reward are linear, so those of the mean outcome."""
        problem, count = self._params.problem, np.maximum(num_requests, 1)
        unknown = np.full(len(num_requests), np.nan)
        means = {field.name: unknown for field in fields(Outcome)}
        outcome = Outcome(**means | {name: self._sums[name] / count for name in self._params.terms.measured})
        mean_costs = costs(outcome, problem)
        return {
            "num_requests": np.array(num_requests, dtype=np.int64),
            "reward": reward(outcome, problem),
            "costs": mean_costs,
            "is_kept": mean_costs <= ceilings(problem),
            "violation_rate": self._counts["violating"] / count,
            "late_rate": self._counts["late"] / count,
            **{name: getattr(outcome, name) for name in _MEANS},
        }


_MEANS = ("latency_s", "device_energy_j", "edge_energy_j", "energy_j", "quality")
"""Fields of a report that are columns of the mean outcome."""


class EpisodeSums(RunningSums):
    """Running sums of what the requests of each row's episode cost and gave, one request per row and step."""

    def __init__(self, params: EnvParams, num_envs: int) -> None:
        super().__init__(params, num_envs)

    def add(self, outcome: Outcome, cost: FloatArray, is_late: BoolArray | None) -> None:
        """Add one request per row.

        Args:
            outcome: what the requests cost and gave, fields of shape (num_envs,).
            cost: sum of the violations of each request, shape (num_envs,).
            is_late: whether each request missed its deadline, shape (num_envs,); None without one.
        """
        for name, total in self._sums.items():
            total += getattr(outcome, name)
        self._counts["violating"] += cost > 0.0
        if is_late is not None:
            self._counts["late"] += is_late

    def report(self, state: EnvState) -> EpisodeReport:
        """Return the report of each row's episode so far."""
        return EpisodeReport(**self._means(state.num_requests))
