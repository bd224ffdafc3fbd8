"""What an episode came to: means of latency, energies, quality and costs, and whether the limits were kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.dynamics import EnvParams, EnvState
from megopt.problem import ceilings, costs, reward
from megopt.system.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeReport:
    """Means over the requests of one episode per row; fields of shape (num_envs,) or (num_envs, num_limits).

    Attributes:
        num_requests: requests in the episode [1].
        reward: mean reward [unit of the objective].
        latency_s: mean latency [s].
        device_energy_j: mean energy of the device [J]; NaN where not measured.
        edge_energy_j: mean energy of the edge [J]; NaN where not measured.
        energy_j: mean energy of both [J]; NaN where not measured.
        quality: mean of the problem's metric; NaN where it has none.
        costs: mean cost per limit.
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


class EpisodeSums:
    """Running sums of what the requests of each row's episode cost and gave."""

    def __init__(self, params: EnvParams, num_envs: int) -> None:
        self._params = params
        self._sums = {name: np.zeros(num_envs) for name in params.terms.measured}
        self._num_violating = np.zeros(num_envs, dtype=np.int32)
        self._num_late = np.zeros(num_envs, dtype=np.int32)

    def add(self, outcome: Outcome, cost: FloatArray, is_late: BoolArray | None) -> None:
        """Add one request per row."""
        for name, total in self._sums.items():
            total += getattr(outcome, name)
        self._num_violating += cost > 0.0
        if is_late is not None:
            self._num_late += is_late

    def clear(self, is_cleared: BoolArray) -> None:
        """Begin anew in the rows `is_cleared` (num_envs,)."""
        totals: list[NDArray[Any]] = [*self._sums.values(), self._num_violating, self._num_late]
        for total in totals:
            total[is_cleared] = 0

    def report(self, state: EnvState) -> EpisodeReport:
        """Return the report of each row's episode so far; costs and reward are linear, so those of the mean outcome."""
        problem, num_requests = self._params.problem, state.num_requests
        unknown = np.full(len(num_requests), np.nan)
        count = np.maximum(num_requests, 1)
        means = {f.name: unknown for f in fields(Outcome)} | {name: sums / count for name, sums in self._sums.items()}
        outcome = Outcome(**means)
        mean_costs = costs(outcome, problem)
        return EpisodeReport(
            num_requests=num_requests.copy(),
            reward=reward(outcome, problem),
            costs=mean_costs,
            is_kept=mean_costs <= ceilings(problem),
            violation_rate=self._num_violating / count,
            late_rate=self._num_late / count,
            latency_s=outcome.latency_s,
            device_energy_j=outcome.device_energy_j,
            edge_energy_j=outcome.edge_energy_j,
            energy_j=outcome.energy_j,
            quality=outcome.quality,
        )
