"""What an episode of a cell came to: means over its requests, and the load of its edge."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.cell_dynamics import CellParams, CellState, CellTransition
from megopt.problem import ceilings, costs, reward
from megopt.system.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class CellReport:
    """Means over the requests of one episode per cell; fields of shape (num_cells,) or (num_cells, num_limits).

    Attributes:
        num_requests: requests decided in the episode [1]; with none, the means are 0.
        num_lost: requests that found no place at their device [1].
        reward: mean reward per request [unit of the objective].
        latency_s: mean latency [s].
        waiting_s: mean time spent waiting, for a slot, the edge, the band or the device [s].
        device_energy_j: mean energy of the device [J]; NaN where not measured.
        edge_energy_j: mean energy of the edge [J]; NaN where not measured.
        energy_j: mean energy of both [J]; NaN where not measured.
        quality: mean of the problem's metric; NaN where it has none.
        costs: mean cost per limit and request.
        is_kept: whether the mean cost keeps each limit.
        violation_rate: share of requests that broke a limit [1].
        late_rate: share of requests that missed the deadline [1].
        edge_load: edge time of the requests over the time of the episode [1]; from 1 on the queue grows without end.
    """

    num_requests: IntArray
    num_lost: IntArray
    reward: FloatArray
    latency_s: FloatArray
    waiting_s: FloatArray
    device_energy_j: FloatArray
    edge_energy_j: FloatArray
    energy_j: FloatArray
    quality: FloatArray
    costs: FloatArray
    is_kept: BoolArray
    violation_rate: FloatArray
    late_rate: FloatArray
    edge_load: FloatArray


class CellSums:
    """Running sums over the requests of each cell's episode."""

    def __init__(self, params: CellParams, num_cells: int) -> None:
        self._params = params
        self._sums = {name: np.zeros(num_cells) for name in (*params.terms.measured, "waiting_s", "edge_used_s")}
        self._counts = {name: np.zeros(num_cells, dtype=np.int64) for name in ("decided", "lost", "violating", "late")}

    def add(self, made: CellTransition, cost: FloatArray, is_late: BoolArray | None) -> None:
        """Add the requests of one slot.

        Args:
            made: what the slot led to.
            cost: sum of the violations of each request, shape (num_flat,).
            is_late: whether each request missed its deadline, shape (num_flat,); None without one.
        """
        columns = {name: getattr(made.outcome, name) for name in self._params.terms.measured}
        for name, column in (columns | {"waiting_s": made.waiting_s}).items():
            self._sums[name] += self._per_cell(np.where(made.is_decided, column, 0.0))
        self._sums["edge_used_s"] += made.service.edge_used_s
        counted = {"decided": made.is_decided, "lost": made.num_lost, "violating": made.is_decided & (cost > 0.0)}
        if is_late is not None:
            counted["late"] = made.is_decided & is_late
        for name, column in counted.items():
            self._counts[name] += self._per_cell(column)

    def _per_cell(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over each cell's devices."""
        total: NDArray[Any] = column.reshape(-1, self._params.num_devices).sum(axis=1)
        return total

    def clear(self, is_cleared: BoolArray) -> None:
        """Begin anew in the cells `is_cleared` (num_cells,)."""
        totals: list[NDArray[Any]] = [*self._sums.values(), *self._counts.values()]
        for total in totals:
            total[is_cleared] = 0

    def report(self, state: CellState) -> CellReport:
        """Return the report of each cell's episode so far; costs and reward are linear: those of the mean outcome."""
        problem, decided = self._params.problem, self._counts["decided"]
        count = np.maximum(decided, 1)
        unknown = np.full(len(decided), np.nan)
        measured = {name: self._sums[name] / count for name in self._params.terms.measured}
        outcome = Outcome(**({field.name: unknown for field in fields(Outcome)} | measured))
        mean_costs = costs(outcome, problem)
        return CellReport(
            num_requests=decided.copy(),
            num_lost=self._counts["lost"].copy(),
            reward=reward(outcome, problem),
            costs=mean_costs,
            is_kept=mean_costs <= ceilings(problem),
            waiting_s=self._sums["waiting_s"] / count,
            violation_rate=self._counts["violating"] / count,
            late_rate=self._counts["late"] / count,
            edge_load=self._sums["edge_used_s"] / (np.maximum(state.slot, 1) * self._params.slot_s),
            latency_s=outcome.latency_s,
            device_energy_j=outcome.device_energy_j,
            edge_energy_j=outcome.edge_energy_j,
            energy_j=outcome.energy_j,
            quality=outcome.quality,
        )
