"""What an episode of a cell came to: means over its requests, and the load of its edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.cell_parameters import CellParams
from megopt.envs.cell_state import CellState, CellTransition, per_cell
from megopt.envs.episode import EpisodeReport, RunningSums


@dataclass(frozen=True, slots=True, kw_only=True)
class CellReport(EpisodeReport):
    """Means over the requests of one episode per cell; beside the attributes of `EpisodeReport`, shape (num_cells,).

    Attributes:
        num_lost: requests that found no place at their device [1].
        waiting_s: mean time spent waiting, for a slot, the edge, the band or the device [s].
        edge_load: edge time of the requests over the time of the episode [1]; from 1 on the queue grows without end.
    """

    num_lost: IntArray
    waiting_s: FloatArray
    edge_load: FloatArray


class CellSums(RunningSums):
    """Running sums over the requests of each cell's episode."""

    _params: CellParams

    def __init__(self, params: CellParams, num_cells: int) -> None:
        super().__init__(params, num_cells, summed=("waiting_s", "edge_used_s"), counted=("decided", "lost"))

    def add(self, made: CellTransition, cost: FloatArray, is_late: BoolArray | None) -> None:
        """Add the requests of one slot.

        Args:
            made: what the slot led to.
            cost: sum of the violations of each request, shape (num_flat,).
            is_late: whether each request missed its deadline, shape (num_flat,); None without one.
        """
        num_devices = self._params.num_devices
        columns = {name: getattr(made.outcome, name) for name in self._params.terms.measured}
        for name, column in (columns | {"waiting_s": made.waiting_s}).items():
            self._sums[name] += per_cell(np.where(made.is_decided, column, 0.0), num_devices)
        self._sums["edge_used_s"] += made.service.edge_used_s
        counted = {"decided": made.is_decided, "lost": made.num_lost, "violating": made.is_decided & (cost > 0.0)}
        if is_late is not None:
            counted["late"] = made.is_decided & is_late
        for name, column in counted.items():
            self._counts[name] += per_cell(column.astype(np.int64), num_devices)

    def report(self, state: CellState) -> CellReport:
        """Return the report of each cell's episode so far."""
        means = self._means(self._counts["decided"].astype(np.int64))
        return CellReport(
            **means,
            num_lost=self._counts["lost"].astype(np.int64),
            waiting_s=self._sums["waiting_s"] / np.maximum(means["num_requests"], 1),
            edge_load=self._sums["edge_used_s"] / (np.maximum(state.slot, 1) * self._params.slot_s),
        )
