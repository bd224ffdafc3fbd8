"""Greedy choices: the least of one quantity, or the best that the budget saved up so far can pay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import NotOfferedError
from megopt.policies.base import Observation
from megopt.policies.online import bounded_limits, online_costs
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers import exhaustive
from megopt.solvers.brute_force import NOWHERE
from megopt.solvers.feasibility import least_violating_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """The row that is fastest, or that takes least energy, whatever the limits.

    Attributes:
        table: rows to choose from.
        problem: kept so that every policy is built alike; only its metric is read.
        quantity: what to keep small: latency_s, device_energy_j, edge_energy_j or energy_j; or quality, to be best.
    """

    table: ActionTable
    problem: Problem
    quantity: str
    reads_limits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        goal = self._goal()
        if goal.objective == "quality":
            return
        parts = {"energy_j": ("edge_energy_j", "device_energy_j"), "latency_s": ()}.get(
            goal.objective, (goal.objective,)
        )
        if any(np.all(np.isnan(getattr(self.table.work, part))) for part in parts):
            message = f"profile {self.table.profile} has no row with a known {goal.objective}; choose another quantity"
            raise NotOfferedError(message)

    def _goal(self) -> Problem:
        return Problem(objective=self.quantity, metric=self.problem.metric)

    def act(self, observation: Observation) -> IntArray:
        """Return the row of least `quantity` for each request, shape (num_requests,); row 0 where none is finite."""
        return np.maximum(exhaustive.solve(self.table, observation.link, self._goal()).rows, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The best row whose costs fit into what is left of the limits: each request adds its share and takes what it uses.

    After t requests a limit has paid in t + 1 shares, so what earlier requests did not use is there for later ones. The
    mean costs keep the limits at every time, as long as some row fits. Where none fits, the row that exceeds what is
    left least, relative to the limit, is taken; in an outage the one that exceeds the limits of a single request least,
    and it is not charged. The requests of one observation are taken one after another; `restart` forgets them.

    Attributes:
        table: rows to choose from.
        problem: objective, and limits on the means.
        saved: what earlier requests left, relative to each limit [1], shape (num_limits,); below 0 where overdrawn.
    """

    table: ActionTable
    problem: Problem
    reads_limits: ClassVar[bool] = True
    saved: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bounded_limits("Greedy", self.problem)
        object.__setattr__(self, "saved", np.zeros(len(self.problem.limits)))

    def restart(self) -> None:
        """Forget what was saved, as for a new run."""
        self.saved[:] = 0.0

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,), and move what is saved."""
        link, bounded = observation.link, bounded_limits("Greedy", self.problem)
        rows = np.full(len(link.snr), NOWHERE, dtype=np.int64)
        for costs in online_costs(self.table, observation, self.problem, bounded):
            saved = self.saved[bounded]
            for request in np.flatnonzero(costs.is_served):
                row = _best_paid(costs.value[request], costs.excess[request], saved)
                saved = saved - costs.excess[request, row]
                rows[costs.requests.start + request] = row
            self.saved[bounded] = saved
        lost = np.flatnonzero(rows == NOWHERE)
        if len(lost):
            rows[lost] = least_violating_rows(self.table, link.take(lost), self.problem)
        return rows


def _best_paid(value: FloatArray, excess: FloatArray, saved: FloatArray) -> np.intp:
    """Return the row of least `value` that `saved` pays, else the one that overdraws it least.

    Args:
        value: objective, inf where a row cannot be chosen, shape (num_rows,).
        excess: relative excess over the share of one request, shape (num_rows, num_bounded).
        saved: what is left of earlier shares, relative to the limits, shape (num_bounded,).
    """
    overdraft = np.max(excess - saved, axis=1, initial=-np.inf)
    paid = np.where(overdraft <= 0.0, value, np.inf)
    if np.any(np.isfinite(paid)):
        return np.argmin(paid)
    return np.argmin(np.where(np.isfinite(value), overdraft, np.inf))
