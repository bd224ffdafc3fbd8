"""Long-run limits without channel statistics: drift plus penalty, with one virtual queue per limit.

For request t with link state s_t the policy takes

    a_t = argmin_a V objective_a(s_t) / spread + sum_i Q_i cost_{a,i}(s_t) / scale_i,
    Q_i <- max(Q_i + (cost_i - limit_i) / scale_i, 0),        scale_i = |limit_i|, or 1 where that is 0,

with the spread of the rows' objective on an endlessly fast link, so that V has no unit. The queues are prices that the
policy learns. Along any sequence of T requests the mean cost exceeds its limit by at most scale_i Q_i(T) / T.
Over independent states, where some choice keeps all limits with slack, the queues stay of the order of V, so that
excess falls as V / T, and the mean objective is within spread B / V of the long-run optimum, with B half the mean
square of the relative excesses: a larger V is better in the end and takes longer to keep the limits.
Source: M. J. Neely, Stochastic Network Optimization, 2010, chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.policies.base import Observation
from megopt.policies.online import bounded_limits, online_costs
from megopt.problem import Problem
from megopt.ranges import require_within
from megopt.schemes.action_table import ActionTable
from megopt.solvers.brute_force import NOWHERE
from megopt.solvers.feasibility import least_violating_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftPlusPenalty:
    """Weighs the objective against the limits by how far they have been exceeded so far.

    The requests of one observation are taken one after another, and the queues go on from call to call; `restart`
    empties them. A request that no row can serve, as in an outage, takes the row that exceeds the limits of a single
    request least and leaves the queues as they are: no later choice could make up for an infinite cost.

    Attributes:
        table: rows to choose from.
        problem: objective, and limits on the means.
        objective_weight: V, the queue that outweighs the whole spread of the objective [1].
        queues: Q, relative excess that is owed per limit [1], shape (num_limits,).
    """

    table: ActionTable
    problem: Problem
    objective_weight: float = 10.0
    reads_limits: ClassVar[bool] = True
    queues: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_within("policy DriftPlusPenalty", 1e-12, 1e12, objective_weight=self.objective_weight)
        bounded_limits("DriftPlusPenalty", self.problem)
        object.__setattr__(self, "queues", np.zeros(len(self.problem.limits)))

    def restart(self) -> None:
        """Empty the queues, as for a new run."""
        self.queues[:] = 0.0

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,), and move the queues."""
        link, bounded = observation.link, bounded_limits("DriftPlusPenalty", self.problem)
        spread, rows = objective_spread(self.table, self.problem), np.full(len(link.snr), NOWHERE, dtype=np.int64)
        for costs in online_costs(self.table, observation, self.problem, bounded):
            penalty, queues = self.objective_weight / spread * costs.value, self.queues[bounded]
            for request in np.flatnonzero(costs.is_served):
                row = np.argmin(penalty[request] + costs.excess[request] @ queues)
                queues = np.maximum(queues + costs.excess[request, row], 0.0)
                rows[costs.requests.start + request] = row
            self.queues[bounded] = queues
        lost = np.flatnonzero(rows == NOWHERE)
        if len(lost):
            rows[lost] = least_violating_rows(self.table, link.take(lost), self.problem)
        return rows


def objective_spread(table: ActionTable, problem: Problem) -> float:
    """Return how far apart the objectives of the rows are without airtime [unit of the objective], 1 if all equal."""
    if problem.objective == "quality":
        values = table.metric(problem.metric)
    else:
        work = table.work
        values = {
            "latency_s": work.edge_s + work.device_s,
            "edge_energy_j": work.edge_energy_j,
            "device_energy_j": work.device_energy_j,
            "energy_j": work.edge_energy_j + work.device_energy_j,
        }[problem.objective]
    known = values[np.isfinite(values)]
    return float(np.ptp(known)) or 1.0 if len(known) else 1.0
