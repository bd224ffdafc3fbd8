"""The exact optimum of the per-request problem, request by request, as a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from megopt.arrays import IntArray
from megopt.errors import NotOfferedError
from megopt.policies.base import Observation
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers import exhaustive
from megopt.solvers.feasibility import least_violating_rows
from megopt.system.link import LinkState
from megopt.system.outcome import terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimal:
    """The best row of the table, or of one scheme in it, within the limits.

    Where no row keeps the limits it takes the row that exceeds them least, so that the user still gets an image; the
    request counts as a violation.

    Attributes:
        table: the rows.
        problem: objective and limits.
        scheme: choose among the rows of this scheme only; all rows where empty.
    """

    table: ActionTable
    problem: Problem
    scheme: str = ""
    reads_limits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not len(self._candidates()):
            message = f"profile {self.table.profile} has no rows of scheme {self.scheme!r}"
            raise NotOfferedError(message)

    def _candidates(self) -> IntArray:
        """Return the rows to choose from, shape (num_candidates,)."""
        is_candidate = self.table.scheme == self.scheme if self.scheme else np.ones(len(self.table), dtype=bool)
        return np.flatnonzero(is_candidate)

    def _by_latency(self, link: LinkState) -> IntArray:
        """Return the candidates, fastest first at the median link: of rows with equal objective the first is taken."""
        candidates = self._candidates()
        alive = np.isfinite(link.downlink_s_per_bit) & np.isfinite(link.uplink_s_per_bit)
        if not alive.any():
            return candidates
        down, up = np.median(link.downlink_s_per_bit[alive]), np.median(link.uplink_s_per_bit[alive])
        latency_s = terms(self.table.work.take(candidates), link, "latency_s").at(down, up)
        return candidates[np.argsort(latency_s, kind="stable")]

    def act(self, observation: Observation) -> IntArray:
        """Return the best row for every request, shape (num_requests,)."""
        candidates = self._by_latency(observation.link)
        table = self.table.take(candidates)
        solution = exhaustive.solve(table, observation.link, self.problem)
        rows = solution.rows.copy()
        lost = np.flatnonzero(~solution.is_feasible)
        if len(lost):
            rows[lost] = least_violating_rows(table, observation.link.take(lost), self.problem)
        return np.asarray(candidates[rows])
