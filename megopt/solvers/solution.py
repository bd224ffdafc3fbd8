"""The record that every solver returns. Infeasible is a status here, not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray


class Status(StrEnum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    """Every state has an answer, and it is proved best up to `gap`."""
    PARTLY_INFEASIBLE = "partly_infeasible"
    """Some states have no row within the limits; the others have their best one."""
    INFEASIBLE = "infeasible"
    """No state has a row within the limits."""

    @classmethod
    def of(cls, is_feasible: BoolArray) -> Status:
        """Return the status that sums up per-state feasibility, shape (num_states,)."""
        if np.all(is_feasible):
            return cls.OPTIMAL
        return cls.PARTLY_INFEASIBLE if np.any(is_feasible) else cls.INFEASIBLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found for `num_states` channel states.

    Attributes:
        solver: name of the solver.
        status: summary over the states.
        rows: chosen row of the action table, shape (num_states,); -1 where infeasible.
        values: objective at the chosen row, shape (num_states,); NaN where infeasible.
        bounds: certified bound on the objective (below for min, above for max), shape (num_states,).
        runtime_s: wall time of the solve [s].
        message: what to know besides, for example the nearest feasible limit.
    """

    solver: str
    status: Status
    rows: IntArray
    values: FloatArray
    bounds: FloatArray
    runtime_s: float
    message: str = ""

    @property
    def is_feasible(self) -> BoolArray:
        """Which states have an answer, shape (num_states,)."""
        return self.rows >= 0

    @property
    def value(self) -> float:
        """Mean objective over the feasible states; NaN where there is none."""
        return float(np.mean(self.values[self.is_feasible])) if np.any(self.is_feasible) else float("nan")

    @property
    def bound(self) -> float:
        """Mean certified bound over the feasible states; NaN where there is none."""
        return float(np.mean(self.bounds[self.is_feasible])) if np.any(self.is_feasible) else float("nan")

    @property
    def gap(self) -> float:
        """Relative distance |value - bound| / max(|bound|, 1e-12)."""
        return abs(self.value - self.bound) / max(abs(self.bound), 1e-12)
